"""Two-dimensional sine-cosine position embeddings (`pos_embed.py` of the official MAE)."""

from __future__ import annotations

import numpy as np


def sincos(side: int, width: int) -> np.ndarray:
    """float32 [1 + side², width]: a zero row for the class token, then the patches in raster order.

    The first half of the channels encodes the COLUMN and the second the row, which reads backwards
    but is what every published MAE checkpoint was trained with. `width` is a multiple of 4.
    """
    frequency = 10000.0 ** -(np.arange(width // 4, dtype=np.float64) / (width // 4))
    angle = np.arange(side, dtype=np.float64)[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)  # [side, width / 2]
    column = np.broadcast_to(line[None, :], (side, side, width // 2))
    row = np.broadcast_to(line[:, None], (side, side, width // 2))
    grid = np.concatenate([column, row], axis=2).reshape(side * side, width)
    return np.concatenate([np.zeros((1, width)), grid]).astype(np.float32)
