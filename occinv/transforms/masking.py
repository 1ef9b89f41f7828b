"""Patch masking: x ⊙ M. Boolean arrays are named `visible`, after the paper's M; never `mask`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from occinv.schema import UserError
from occinv.size import Grid, Size, sides

ASPECT = 0.3  # of the flattest rectangle that BEiT removes; the steepest has 1 / 0.3
# Rectangles tried for an image. Of 75 or 98 in 196 patches, one is then missing in one image
# of 50 (docs/fidelity.md).
ATTEMPTS = 64


def kept_patches(num_patches: int, ratio: float) -> int:
    """Return how many of `num_patches` stay visible when `ratio` of them are removed, rounded down.

    The official MAE rounds in the same way (`random_masking` of models_mae.py).

    Raises:
      UserError: The ratio is outside (0, 1) or leaves no visible patch.
    """
    if not 0 < ratio < 1:
        raise UserError(f"mask ratio {ratio}, expected a number strictly between 0 and 1")
    # 1e-9: 0.9 * 10 patches removed must leave 1, which 1 - 0.9 in binary misses.
    kept = int(num_patches * (1 - ratio) + 1e-9)
    if kept == 0:
        raise UserError(
            f"mask ratio {ratio} leaves none of {num_patches} patches visible; use a smaller one"
        )
    return kept


def lowest(noise: jax.Array, kept: int | jax.Array) -> jax.Array:
    """Return bool [B, N]: True for the `kept` patches of each image with the lowest `noise` [B, N].

    The official MAE chooses in the same way (`random_masking`); its own array has the opposite
    polarity.
    """
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    return rank < kept


def random_visible(rng: jax.Array, num_patches: int, kept: int) -> jax.Array:
    """Draw bool [B, N] with `kept` visible patches in each image, by key array [B]."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(rng)
    return lowest(noise, kept)


def squares_visible(rng: jax.Array, grid: Grid, kept: int, unit: int) -> jax.Array:
    """Draw bool [B, N]: squares of patches are visible or removed as a whole (SimMIM).

    `MaskGenerator` of the official data_simmim.py draws in the same way.

    Args:
      rng: key array [B].
      grid: Rows and columns of the N patches.
      kept: The number of visible squares in each image.
      unit: Patches a side of a square, a divisor of rows and columns.
    """
    rows, columns = (side // unit for side in grid)
    squares = random_visible(rng, rows * columns, kept).reshape(-1, rows, columns)
    return squares.repeat(unit, 1).repeat(unit, 2).reshape(-1, math.prod(grid))


def rectangles_visible(
    rng: jax.Array, grid: Grid, kept: int | jax.Array, min_rectangle: int
) -> jax.Array:
    """Draw bool [B, N] with `kept` visible patches; the others are removed in rectangles, as BEiT.

    Rectangles of random area and aspect are removed one after the other while they add no more than
    is missing (`MaskingGenerator` of masking_generator.py). To remove exactly the given number, the
    remaining patches are removed one by one next to removed ones.

    Args:
      rng: key array [B].
      grid: Rows and columns of the N patches.
      kept: int or int32 [B].
      min_rectangle: The smallest area that a rectangle is drawn with, in patches, as long as so
        many are missing.
    """
    extent = jnp.array(grid)

    def one(key: jax.Array, goal: jax.Array) -> jax.Array:
        loop_key, rest_key = jax.random.split(key)

        def remove_rectangle(attempt: jax.Array, removed: jax.Array) -> jax.Array:
            draws = jax.random.uniform(jax.random.fold_in(loop_key, attempt), (4,))
            missing = goal - removed.sum()
            area = min_rectangle + draws[0] * (missing - min_rectangle).astype(jnp.float32)
            aspect = jnp.exp(math.log(ASPECT) * (2 * draws[1] - 1))
            size = jnp.round(jnp.sqrt(area * jnp.stack([aspect, 1 / aspect]))).astype(jnp.int32)
            places = (extent - size + 1).astype(jnp.float32)
            first = jnp.floor(draws[2:] * places).astype(jnp.int32)
            rows, columns = (
                (jnp.arange(side) >= first[axis]) & (jnp.arange(side) < (first + size)[axis])
                for axis, side in enumerate(grid)
            )
            rectangle = rows[:, None] & columns
            added = (rectangle & ~removed).sum()
            fits = (size < extent).all() & (added > 0) & (added <= missing)
            return removed | (rectangle & fits)

        # The count is fixed: a loop that ends when all images are done would wait for all devices.
        removed = jax.lax.fori_loop(0, ATTEMPTS, remove_rectangle, jnp.zeros(grid, bool))
        around = jnp.pad(removed, 1).astype(jnp.float32)
        beside = around[2:, 1:-1] + around[:-2, 1:-1] + around[1:-1, 2:] + around[1:-1, :-2]
        noise = jax.random.uniform(rest_key, grid) - beside
        return jnp.where(removed, -jnp.inf, noise).reshape(-1)

    goal = jnp.broadcast_to(jnp.asarray(math.prod(grid) - kept, jnp.int32), rng.shape)
    return ~lowest(jax.vmap(one)(rng, goal), goal[:, None])


def visible_ids(visible: jax.Array, kept: int) -> jax.Array:
    """Return int32 [B, kept]: the positions of the visible patches of [B, N], in raster order."""
    return jnp.argsort(~visible, axis=1, stable=True)[:, :kept]


def paint(pixels: jax.Array, visible: jax.Array, patch_size: Size, value: float = 0.0) -> jax.Array:
    """Return [B, H, W, C] with the patches not in `visible` [B, N] set to a value; 0 is x ⊙ M."""
    batch, height, width, _ = pixels.shape
    h, w = sides(patch_size)
    seen = visible.reshape(batch, height // h, width // w).repeat(h, 1).repeat(w, 2)
    return jnp.where(seen[..., None], pixels, value)
