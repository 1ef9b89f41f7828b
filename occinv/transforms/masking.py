"""Patch masking: x ⊙ M. Arrays are named `visible`, for the paper's M; never `mask`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from occinv.schema import UserError

ASPECT = 0.3  # of the flattest block that BEiT removes; the steepest has 1 / 0.3
# Blocks that are tried for an image. Of 75 or 98 in 196 patches, one is then missing in one image
# of 50 (docs/fidelity.md).
ATTEMPTS = 64


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


def rectangles_visible(keys: jax.Array, num_patches: int, kept: int, smallest: int) -> jax.Array:
    """bool [B, N] with `kept` patches visible, the others removed in blocks, as BEiT removes them.

    Blocks of random area and aspect are removed one after the other while what they add is not too
    much (`MaskingGenerator` of masking_generator.py). What is then missing, to be exactly as many
    as asked, are single patches beside those removed.

    Args:
      keys: one for each image [B].
      num_patches: N, a square number.
      smallest: area that a block is drawn with at least, in patches, while so many are missing.
    """
    side, goal = math.isqrt(num_patches), num_patches - kept

    def one(key: jax.Array) -> jax.Array:
        loop_key, rest_key = jax.random.split(key)

        def remove_a_block(attempt: jax.Array, removed: jax.Array) -> jax.Array:
            draws = jax.random.uniform(jax.random.fold_in(loop_key, attempt), (4,))
            missing = goal - removed.sum()
            area = smallest + draws[0] * (missing - smallest).astype(jnp.float32)
            aspect = jnp.exp(math.log(ASPECT) * (2 * draws[1] - 1))
            size = jnp.round(jnp.sqrt(area * jnp.stack([aspect, 1 / aspect]))).astype(jnp.int32)
            places = (side - size + 1).astype(jnp.float32)
            first = jnp.floor(draws[2:] * places).astype(jnp.int32)
            line = jnp.arange(side)
            rows, columns = (line >= first[:, None]) & (line < (first + size)[:, None])
            block = rows[:, None] & columns
            added = (block & ~removed).sum()
            fits = (size < side).all() & (added > 0) & (added <= missing)
            return removed | (block & fits)

        # So many for every image: a loop that ends when all are done would wait for all devices.
        removed = jax.lax.fori_loop(0, ATTEMPTS, remove_a_block, jnp.zeros((side, side), bool))
        around = jnp.pad(removed, 1).astype(jnp.float32)
        beside = around[2:, 1:-1] + around[:-2, 1:-1] + around[1:-1, 2:] + around[1:-1, :-2]
        noise = jax.random.uniform(rest_key, (side, side)) - beside
        return jnp.where(removed, -jnp.inf, noise).reshape(-1)

    return ~lowest(jax.vmap(one)(keys), goal)


def visible_ids(visible: jax.Array, kept: int) -> jax.Array:
    """int32 [B, kept]: where the visible patches of `visible` [B, N] are, in raster order."""
    return jnp.argsort(~visible, axis=1, stable=True)[:, :kept]


def paint(pixels: jax.Array, visible: jax.Array, patch_size: int) -> jax.Array:
    """x ⊙ M in pixels: [B, H, W, 3] with the patches that are not visible [B, N] set to zero."""
    batch, height, width, _ = pixels.shape
    grid = visible.reshape(batch, height // patch_size, width // patch_size)
    seen = grid.repeat(patch_size, 1).repeat(patch_size, 2)
    return jnp.where(seen[..., None], pixels, 0.0)
