"""Randomness by position.

Whatever is random about an image on the device follows from (seed, step, position in the global
batch) and from nothing else: not from the number of devices, of processes or of accumulated parts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def image_rngs(key: jax.Array, step: jax.Array, batch_size: int) -> jax.Array:
    """One key for each position of the global batch at this step: key array [B].

    Args:
      key: the run's key (a scalar key array).
      step: int32 [], the number of steps taken before this one.
      batch_size: B, the global batch.
    """
    at_step = jax.random.fold_in(key, step)
    return jax.vmap(lambda position: jax.random.fold_in(at_step, position))(jnp.arange(batch_size))


def split(keys: jax.Array, count: int) -> list[jax.Array]:
    """`count` independent key arrays [B] from one key array [B]: one for each use."""
    return list(jax.vmap(lambda key: jax.random.split(key, count))(keys).T)


def fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Key array [B] for the use called `number` (a view, a layer), from key array [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
