"""Measures as pure functions of arrays. Each returns its value image by image."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

Negatives = Literal["position", "image", "batch"]


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and deviation of each patch of [B, N, P] over its own P values: [B, N, 1] each.

    The variance is the unbiased one (P - 1), for that is what `torch.var` gives the official MAE
    (`forward_loss` of models_mae.py), with 1e-6 added to it.
    """
    variance = patches.var(-1, keepdims=True, ddof=1)
    return patches.mean(-1, keepdims=True), jnp.sqrt(variance + 1e-6)


def normalize_patches(patches: jax.Array) -> jax.Array:
    """Each patch of [B, N, P] to mean 0 and deviation 1."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def patch_distance(first: jax.Array, second: jax.Array, region: jax.Array) -> jax.Array:
    """‖(first - second) ⊙ region‖², Eqs. (3) and (5), as means: [B].

    Args:
      first, second: float [B, N, P], values of patches.
      region: bool [B, N], the patches that count: 1 - M in the paper.

    Returns:
      For each image the mean over the patches of its region of the mean squared difference.
    """
    squared = jnp.square(first - second).mean(-1)
    return mean_over(squared, region)


def mean_over(values: jax.Array, region: jax.Array) -> jax.Array:
    """The mean of values [B, N] over region [B, N]: [B]. An empty region gives 0."""
    weight = region.astype(values.dtype)
    return (values * weight).sum(1) / jnp.maximum(weight.sum(1), 1)


def cosine(first: jax.Array, second: jax.Array) -> jax.Array:
    """The cosine of [..., D] and [..., D]: [...], Eq. (10) once the heads have been applied."""
    return (unit(first) * unit(second)).sum(-1)


def unit(vectors: jax.Array) -> jax.Array:
    """[..., D] scaled to length 1 (at least 1e-12, as `torch.nn.functional.normalize`)."""
    # The root of a squared length that underflows has an infinite slope: keep away from it.
    squared = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def similarities(
    queries: jax.Array, keys: jax.Array, negatives: Negatives
) -> tuple[jax.Array, jax.Array]:
    """The cosines of Eq. (9)'s denominator, and where among them the positive is.

    Args:
      queries: q(p(z1)), float [B, T, D]: T tokens of each image of the global batch.
      keys: p(z2), float [B, T, D].
      negatives: which keys z'_j a query is told apart from: the same token of every image
        (`position`), every token of its own image (`image`), or all of both (`batch`).

    Returns:
      cosines [B, T, J] over the J keys that a query sees, and int32 [B, T], its positive's index.
    """
    queries, keys = unit(queries), unit(keys)
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
    """-log softmax of the positive, Eq. (9): [B, T] from `similarities`."""
    log_probability = jax.nn.log_softmax(cosines / temperature, axis=-1)
    return -jnp.take_along_axis(log_probability, positive[..., None], axis=-1)[..., 0]


def byol(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """2 - 2·cos, the squared distance of unit vectors (BYOL): [...] from [..., D]."""
    return 2 - 2 * cosine(queries, keys)


def smooth_l1(first: jax.Array, second: jax.Array, beta: float) -> jax.Array:
    """|d| - β/2, and d²/2β where |d| < β, of d = first - second: [...] from [...] and [...].

    `torch.nn.functional.smooth_l1_loss` without its mean.
    """
    return optax.huber_loss(first, second, delta=beta) / beta


def soft_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """-Σ p · log softmax(logits): [...] from [..., C] and [..., C]."""
    return -(probabilities * jax.nn.log_softmax(logits, axis=-1)).sum(-1)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy with label smoothing, as timm's LabelSmoothingCrossEntropy: [...].

    Args:
      logits: float [..., C].
      labels: int [...].
      smoothing: the probability that is spread evenly over all C classes.
    """
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    of_label = jnp.take_along_axis(log_probability, labels[..., None], axis=-1)[..., 0]
    return -(1 - smoothing) * of_label - smoothing * log_probability.mean(-1)
