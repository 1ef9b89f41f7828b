"""Two-dimensional position embeddings: sine-cosine as in the official MAE, and resized."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def sincos(side: int, width: int) -> np.ndarray:
    """Return the sine-cosine embedding, float32 [1 + side², width].

    The class token's row is zero; the patches follow in raster order. The first half of the
    channels encodes the COLUMN and the second half the row, because every published MAE checkpoint
    was trained so. `width` is a multiple of 4.
    """
    frequency = 10000.0 ** -(np.arange(width // 4, dtype=np.float64) / (width // 4))
    angle = np.arange(side, dtype=np.float64)[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)  # [side, width / 2]
    column = np.broadcast_to(line[None, :], (side, side, width // 2))
    row = np.broadcast_to(line[:, None], (side, side, width // 2))
    grid = np.concatenate([column, row], axis=2).reshape(side * side, width)
    return np.concatenate([np.zeros((1, width)), grid]).astype(np.float32)


def relative_offsets(side: int, own: int) -> np.ndarray:
    """Return the row of BEiT's bias table for each pair of tokens: int32 [1 + side², 1 + side²].

    The table belongs to a grid of `own`² patches; the `side`² patches may be a smaller grid. It has
    a row for each of the (2 · own - 1)² differences of query and key in rows and columns, then one
    each for class token to patch, patch to class token, and class token to itself.
    """
    line = np.arange(side)
    place = np.stack(np.meshgrid(line, line, indexing="ij")).reshape(2, -1)  # [2, side²]
    rows, columns = place[:, :, None] - place[:, None, :] + own - 1
    offsets = np.empty((1 + side**2, 1 + side**2), np.int32)
    offsets[1:, 1:] = rows * (2 * own - 1) + columns
    patches = (2 * own - 1) ** 2
    offsets[0, :], offsets[:, 0], offsets[0, 0] = patches, patches + 1, patches + 2
    return offsets


def interpolate(position: jax.Array, side: int, scale: float | None = None) -> jax.Array:
    """Resize a position embedding [1 + old², D] to a grid of `side`² patches: [1 + side², D].

    The class token's row stays. The rest is resized as by PyTorch's bicubic `interpolate`
    (`align_corners=False`, no antialiasing), which the official MAE and DINO use.

    Args:
      position: The embedding.
      side: Patches a side of the new grid.
      scale: New grid over old grid; None: side / old. DINO passes (side + 0.1) / old, which moves
        its sampling points.
    """
    old = round((position.shape[0] - 1) ** 0.5)
    if old == side:
        return position
    weights = jnp.asarray(bicubic(old, side, scale or side / old), position.dtype)
    grid = position[1:].reshape(old, old, -1)
    resized = jnp.einsum("io,jp,opd->ijd", weights, weights, grid)
    return jnp.concatenate([position[:1], resized.reshape(side * side, -1)])


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
