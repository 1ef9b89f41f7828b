"""Position embeddings that are not learned, and so may be left out of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from occinv.models.position import sincos


def moco_sincos(side: int, width: int) -> np.ndarray:
    """MoCo v3's (`vits.py`): that of MAE with rows and columns swapped, [1 + side², width]."""
    table = sincos(side, width)
    swapped = table[1:].reshape(side, side, width).swapaxes(0, 1).reshape(side**2, width)
    return np.concatenate([table[:1], swapped])


def big_vision_sincos(side: int, width: int) -> np.ndarray:
    """big_vision's (`posemb_sincos_2d`): as MAE's, but its last frequency is 1 / 10000 exactly.

    float32 [1 + side², width]; the class token, joined after it, has a zero row. `width` is a
    multiple of 4, and at least 8.
    """
    frequency = 10000.0 ** -np.linspace(0, 1, width // 4)
    angle = np.arange(side)[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    column, row = np.tile(line, (side, 1)), np.repeat(line, side, axis=0)
    grid = np.concatenate([column, row], axis=1)
    return np.concatenate([np.zeros((1, width)), grid]).astype(np.float32)


# By origin, with a name for it; other origins learn theirs.
FIXED: dict[str, tuple[str, Callable[[int, int], np.ndarray]]] = {
    "mae": ("MAE's sine-cosine table", sincos),
    "mocov3": ("MoCo v3's sine-cosine table", moco_sincos),
    "big_vision": ("big_vision's sine-cosine table", big_vision_sincos),
}
