"""InfoNCE, Eq. (9), and BYOL's distance. `chunked.py` computes InfoNCE in bounded memory."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

Negatives = Literal["position", "image", "batch"]


def unit(vectors: jax.Array) -> jax.Array:
    """Scale [..., D] to length 1; lengths below 1e-12 count as 1e-12 (PyTorch: normalize)."""
    # The square root has an infinite slope at a squared length that underflows to 0.
    squared = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """Return the cosine of [..., D] and [..., D]: [...], Eq. (10) once the heads are applied."""
    return optax.cosine_similarity(first, second, epsilon=1e-24)


def byol(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Return 2 - 2·cos, the squared distance of unit vectors (BYOL): [...] from [..., D]."""
    return 2 - 2 * cosine(queries, keys)


def similarities(
    queries: jax.Array, keys: jax.Array, negatives: Negatives
) -> tuple[jax.Array, jax.Array]:
    """Return the cosines in Eq. (9)'s denominator, and the index of the positive among them.

    Args:
      queries: q(p(z1)) of length 1, float [B, T, D]: T tokens of each image of the global batch.
      keys: p(z2) of length 1, float [B, T, D].
      negatives: The keys z'_j that a query is contrasted with: the same token of every image
        (`position`), every token of its own image (`image`), or all tokens of all images (`batch`).

    Returns:
      cosines [B, T, J] with the J keys of a query, and int32 [B, T], the index of its positive.
    """
    batch, tokens, _ = queries.shape
    image_index = jnp.broadcast_to(jnp.arange(batch)[:, None], (batch, tokens))
    token_index = jnp.broadcast_to(jnp.arange(tokens)[None, :], (batch, tokens))
    if negatives == "position":
        return jnp.einsum("btd,jtd->btj", queries, keys), image_index
    if negatives == "image":
        return jnp.einsum("btd,bjd->btj", queries, keys), token_index
    everything = keys.reshape(batch * tokens, -1)
    return jnp.einsum("btd,jd->btj", queries, everything), image_index * tokens + token_index


def info_nce(cosines: jax.Array, positive: jax.Array, temperature: float) -> jax.Array:
    """Return -log softmax of the positive, Eq. (9): [B, T] from `similarities`."""
    return optax.softmax_cross_entropy_with_integer_labels(cosines / temperature, positive)
