"""Patch masking: x ⊙ M. Arrays are named `visible`, for the paper's M; never `mask`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from occinv.schema import UserError


def kept_patches(num_patches: int, ratio: float) -> int:
    """How many of `num_patches` stay visible when `ratio` of them are removed, rounded down.

    The official MAE rounds so (`random_masking` of models_mae.py). Raises UserError when the ratio
    lies outside (0, 1) or leaves no patch to see.
    """
    if not 0 < ratio < 1:
        raise UserError(f"mask ratio {ratio}, expected a number strictly between 0 and 1")
    # 1e-9: 0.9 * 10 patches removed must leave 1, which 1 - 0.9 in binary misses.
    kept = int(num_patches * (1 - ratio) + 1e-9)
    if kept == 0:
        raise UserError(f"mask ratio {ratio} leaves none of the {num_patches} patches visible")
    return kept


def lowest(noise: jax.Array, kept: int) -> jax.Array:
    """bool [B, N]: True for the `kept` patches of each image whose `noise` [B, N] is lowest.

    The choice of the official MAE (`random_masking`), whose own array has the opposite polarity.
    """
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    return rank < kept


def random_visible(keys: jax.Array, num_patches: int, kept: int) -> jax.Array:
    """bool [B, N] with `kept` patches visible in each image, drawn by the image's own key [B]."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)
    return lowest(noise, kept)


def visible_ids(visible: jax.Array, kept: int) -> jax.Array:
    """int32 [B, kept]: where the visible patches of `visible` [B, N] are, in raster order."""
    return jnp.argsort(~visible, axis=1, stable=True)[:, :kept]


def paint(pixels: jax.Array, visible: jax.Array, patch_size: int) -> jax.Array:
    """x ⊙ M in pixels: [B, H, W, 3] with the patches that are not visible [B, N] set to zero."""
    batch, height, width, _ = pixels.shape
    grid = visible.reshape(batch, height // patch_size, width // patch_size)
    seen = grid.repeat(patch_size, 1).repeat(patch_size, 2)
    return jnp.where(seen[..., None], pixels, 0.0)
