"""I-JEPA's multi-block masking: a large context rectangle without the smaller target rectangles."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from occinv.transforms.masking import lowest

Choice = Literal["first", "random"]


def rectangle_size(num_patches: int, scale: float, aspect: float) -> tuple[int, int]:
    """Return rows and columns of a rectangle with a share `scale` of a square image's patches.

    `aspect` is height by width. A rectangle never spans a whole side (`_sample_block_size` of
    multiblock.py).
    """
    area, longest = int(num_patches * scale), math.isqrt(num_patches) - 1
    rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(rows, longest), min(columns, longest)


def multiblock(
    rng: jax.Array,
    num_patches: int,
    context: tuple[int, int],
    target: tuple[int, int],
    num_targets: int,
    choice: Choice = "first",
) -> tuple[jax.Array, jax.Array]:
    """Draw a context rectangle and target rectangles, each anywhere in the image.

    Args:
      rng: key array [B].
      num_patches: N, a square number.
      context, target: Rows and columns of either kind of rectangle.
      num_targets: T, target rectangles of an image, which may overlap each other.
      choice: Which patches of the context are kept if targets overlap and more remain: the `first`
        in raster order, as in the official `MaskCollator`, or a `random` choice.

    Returns:
      bool [B, N], True for the kept patches of the context, which are in no target. Their number is
      what remains where no targets overlap.
      int32 [B, T, R], the patches of each target in raster order.
    """
    side = math.isqrt(num_patches)
    kept = math.prod(context) - num_targets * math.prod(target)

    def place(key: jax.Array, size: tuple[int, int], count: int) -> jax.Array:
        """Place `count` rectangles: the patches of each, int32 [count, rows · columns]."""
        rows, columns = (jnp.arange(length) for length in size)
        inside = (rows[:, None] * side + columns).reshape(-1)
        first = jax.random.randint(key, (count, 2), 0, side + 1 - jnp.array(size))
        return first[:, :1] * side + first[:, 1:] + inside

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        context_key, target_key, noise_key = jax.random.split(key, 3)
        targets = place(target_key, target, num_targets)
        seen = jnp.zeros(num_patches, bool).at[place(context_key, context, 1)].set(True)
        order = jnp.arange(num_patches, dtype=jnp.float32)
        if choice == "random":
            order = jax.random.uniform(noise_key, (num_patches,))
        return jnp.where(seen.at[targets].set(False), order, jnp.inf), targets

    order, targets = jax.vmap(one)(rng)
    return lowest(order, kept), targets
