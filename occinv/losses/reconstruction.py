"""Losses on pixels: the patch distance of Eqs. (3) and (5) and normalized target patches."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return mean and standard deviation of each patch of [B, N, P] over its P values: [B, N, 1].

    The variance is unbiased (P - 1), as `torch.var` computes it in the official MAE
    (`forward_loss` of models_mae.py), and 1e-6 is added to it.
    """
    variance = patches.var(-1, keepdims=True, ddof=1)
    return patches.mean(-1, keepdims=True), jnp.sqrt(variance + 1e-6)


def normalize_patches(patches: jax.Array) -> jax.Array:
    """Scale each patch of [B, N, P] to mean 0 and standard deviation 1."""
    mean, deviation = patch_statistics(patches)
    return (patches - mean) / deviation


def patch_distance(first: jax.Array, second: jax.Array, region: jax.Array) -> jax.Array:
    """Return ‖(first - second) ⊙ region‖², Eqs. (3) and (5), as a mean: [B].

    Args:
      first, second: float [B, N, P], values of patches.
      region: bool [B, N], the patches that count: 1 - M in the paper.

    Returns:
      For each image the mean over the patches of its region of the mean squared difference.
    """
    squared = jnp.square(first - second).mean(-1)
    return mean_over(squared, region)


def mean_over(values: jax.Array, region: jax.Array) -> jax.Array:
    """Return the mean of values [B, N] over region [B, N]: [B]. An empty region gives 0."""
    weight = region.astype(values.dtype)
    return (values * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
