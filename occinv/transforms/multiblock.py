"""I-JEPA's masks: a large block of patches without the smaller ones that are to be told from it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from occinv.transforms.masking import lowest


def block_size(num_patches: int, scale: float, aspect: float) -> tuple[int, int]:
    """Rows and columns of a block of `scale` of a square image's patches, and never a whole side.

    `aspect` is height by width (`_sample_block_size` of multiblock.py).
    """
    area, longest = int(num_patches * scale), math.isqrt(num_patches) - 1
    rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(rows, longest), min(columns, longest)


def multiblock(
    keys: jax.Array,
    num_patches: int,
    context: tuple[int, int],
    target: tuple[int, int],
    count: int,
) -> tuple[jax.Array, jax.Array]:
    """A context and the blocks that are to be told from it, each anywhere in the image.

    Args:
      keys: one for each image [B].
      num_patches: N, a square number.
      context, target: rows and columns of either kind of block.
      count: T, target blocks of an image, which may overlap each other.

    Returns:
      bool [B, N], True for patches of the context block that are in no target block: as many of
      these, drawn at random, as are left where no target blocks overlap.
      int32 [B, T, R], the patches of each target block in raster order.
    """
    side = math.isqrt(num_patches)
    kept = math.prod(context) - count * math.prod(target)

    def place(key: jax.Array, size: tuple[int, int], blocks: int) -> jax.Array:
        """Where the patches of `blocks` blocks are: int32 [blocks, rows · columns]."""
        rows, columns = (jnp.arange(length) for length in size)
        inside = (rows[:, None] * side + columns).reshape(-1)
        first = jax.random.randint(key, (blocks, 2), 0, side + 1 - jnp.array(size))
        return first[:, :1] * side + first[:, 1:] + inside

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        context_key, target_key, noise_key = jax.random.split(key, 3)
        blocks = place(target_key, target, count)
        seen = jnp.zeros(num_patches, bool).at[place(context_key, context, 1)].set(True)
        noise = jax.random.uniform(noise_key, (num_patches,))
        return jnp.where(seen.at[blocks].set(False), noise, jnp.inf), blocks

    noise, blocks = jax.vmap(one)(keys)
    return lowest(noise, kept), blocks
