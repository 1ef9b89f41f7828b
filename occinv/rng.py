"""Randomness by position.

Everything random about an image on the device follows from (seed, step, position in the global
batch) and from nothing else: not from the number of devices, processes or accumulation steps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def image_rngs(rng: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """Return one PRNG key for each position of the global batch at this step: key array [B].

    Args:
      rng: The run's key (a scalar key array).
      step: int32 [], the number of steps taken before this one.
      batch_size: B, the global batch.
    """
    at_step = jax.random.fold_in(rng, step)
    return jax.vmap(lambda position: jax.random.fold_in(at_step, position))(jnp.arange(batch_size))


def split(rng: jax.Array, count: int) -> list[jax.Array]:
    """Split a key array [B] into `count` independent key arrays [B], one for each use."""
    return list(jax.vmap(lambda key: jax.random.split(key, count))(rng).T)


def fold(rng: jax.Array, number: jax.Array | int) -> jax.Array:
    """Derive the key array [B] of the use called `number` (a view, a layer) from key array [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng, number)


def uniform(rng: jax.Array, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Draw float32 [B], uniform in [low, high), each value by its own key of [B]."""
    return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(rng)
