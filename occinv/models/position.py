"""Two-dimensional position embeddings: sine-cosine as in the official MAE, and resized."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from occinv.size import Grid, Size, sides


def sincos(grid: Size, width: int) -> np.ndarray:
    """Return the sine-cosine embedding of a grid of patches, float32 [1 + N, width].

    The class token's row is zero; the patches follow in raster order. The first half of the
    channels encodes the COLUMN and the second half the row, because every published MAE checkpoint
    was trained so.

    Args:
      grid: Rows and columns of patches, or one number for both.
      width: A multiple of 4.
    """
    rows, columns = sides(grid)
    frequency = 10000.0 ** -(np.arange(width // 4, dtype=np.float64) / (width // 4))
    angle = np.arange(max(rows, columns), dtype=np.float64)[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)  # [longer side, width / 2]
    column = np.broadcast_to(line[None, :columns], (rows, columns, width // 2))
    row = np.broadcast_to(line[:rows, None], (rows, columns, width // 2))
    both = np.concatenate([column, row], axis=2).reshape(rows * columns, width)
    return np.concatenate([np.zeros((1, width)), both]).astype(np.float32)


def relative_offsets(grid: Grid, own: Grid) -> np.ndarray:
    """Return the row of BEiT's bias table for each pair of tokens: int32 [1 + N, 1 + N].

    The table belongs to a grid of `own` rows and columns; the N patches of `grid` may be fewer
    along either side. The table has a row for each of the (2 · rows - 1) · (2 · columns - 1)
    differences of query and key, then one each for class token to patch, patch to class token, and
    class token to itself.
    """
    rows, columns = np.indices(grid).reshape(2, -1)
    down, right = (2 * side - 1 for side in own)
    offsets = np.empty((1 + len(rows), 1 + len(rows)), np.int32)
    row = rows[:, None] - rows + own[0] - 1
    column = columns[:, None] - columns + own[1] - 1
    offsets[1:, 1:] = row * right + column
    patches = down * right
    offsets[0, :], offsets[:, 0], offsets[0, 0] = patches, patches + 1, patches + 2
    return offsets


def interpolate(position: jax.Array, old: Size, new: Size, extra: float = 0.0) -> jax.Array:
    """Resize a position embedding of the grid `old` [1 + N, D] to the grid `new`: [1 + M, D].

    The class token's row stays. The rest is resized as by PyTorch's bicubic `interpolate`
    (`align_corners=False`, no antialiasing), which the official MAE and DINO use.

    Args:
      position: The embedding.
      old, new: Rows and columns of patches, or one number for both.
      extra: Along each side, the new grid is `new + extra` over `old` as large as the old one.
        DINO adds 0.1, which moves its sampling points.
    """
    old, new = sides(old), sides(new)
    if old == new:
        return position
    weights = [
        jnp.asarray(bicubic(before, after, (after + extra) / before), position.dtype)
        for before, after in zip(old, new, strict=True)
    ]
    grid = position[1:].reshape(*old, -1)
    resized = jnp.einsum("io,jp,opd->ijd", *weights, grid)
    return jnp.concatenate([position[:1], resized.reshape(-1, position.shape[1])])


def bicubic(old: int, new: int, scale: float) -> np.ndarray:
    """Return float64 [new, old]: the weight of each of `old` samples of a line in `new` samples.

    Cubic convolution with PyTorch's a = -0.75; beyond the ends the last sample repeats.
    """
    a = -0.75
    center = (np.arange(new) + 0.5) / scale - 0.5
    first = np.floor(center).astype(int) - 1
    weights = np.zeros((new, old))
    for tap in range(4):
        at = first + tap
        x = np.abs(center - at)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(weights, (np.arange(new), np.clip(at, 0, old - 1)), np.where(x <= 1, near, far))
    return weights
