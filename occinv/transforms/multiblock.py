"""I-JEPA's multi-block masking: a large context rectangle without the smaller target rectangles."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from occinv.size import Grid
from occinv.transforms.masking import lowest

Choice = Literal["first", "random"]


def rectangle_size(grid: Grid, scale: float, aspect: float) -> Grid:
    """Return rows and columns of a rectangle with a share `scale` of a grid's patches.

    `aspect` is its rows by its columns. A rectangle never spans a whole side (`_sample_block_size`
    of multiblock.py).
    """
    area = int(math.prod(grid) * scale)
    rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(rows, grid[0] - 1), min(columns, grid[1] - 1)


def multiblock(
    rng: jax.Array,
    grid: Grid,
    context: Grid,
    target: Grid,
    num_targets: int,
    choice: Choice = "first",
) -> tuple[jax.Array, jax.Array]:
    """Draw a context rectangle and target rectangles, each anywhere in the image.

    Args:
      rng: key array [B].
      grid: Rows and columns of the N patches.
      context, target: Rows and columns of either kind of rectangle.
      num_targets: T, target rectangles of an image, which may overlap each other.
      choice: Which patches of the context are kept if targets overlap and more remain: the `first`
        in raster order, as in the official `MaskCollator`, or a `random` choice.

    Returns:
      bool [B, N], True for the kept patches of the context, which are in no target. Their number is
      what remains where no targets overlap.
      int32 [B, T, R], the patches of each target in raster order.
    """
    count, across = math.prod(grid), grid[1]
    kept = math.prod(context) - num_targets * math.prod(target)

    def place(key: jax.Array, size: Grid, number: int) -> jax.Array:
        """Place `number` rectangles: the patches of each, int32 [number, rows · columns]."""
        rows, columns = (jnp.arange(length) for length in size)
        inside = (rows[:, None] * across + columns).reshape(-1)
        first = jax.random.randint(key, (number, 2), 0, 1 + jnp.array(grid) - jnp.array(size))
        return first[:, :1] * across + first[:, 1:] + inside

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        context_key, target_key, noise_key = jax.random.split(key, 3)
        targets = place(target_key, target, num_targets)
        seen = jnp.zeros(count, bool).at[place(context_key, context, 1)].set(True)
        order = jnp.arange(count, dtype=jnp.float32)
        if choice == "random":
            order = jax.random.uniform(noise_key, (count,))
        return jnp.where(seen.at[targets].set(False), order, jnp.inf), targets

    order, targets = jax.vmap(one)(rng)
    return lowest(order, kept), targets
