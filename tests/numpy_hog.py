"""Histograms of oriented gradients, as loops over pixels in float64."""

from __future__ import annotations

import math

import numpy as np


def hog_of_cell(levels: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """Return [9] for the square cell of one channel, integers [H, W], from row `top` on."""

    def level(y: int, x: int) -> int:
        y, x = abs(y), abs(x)  # reflected at the first row and column, and at the last
        return int(levels[min(y, 2 * len(levels) - 2 - y), min(x, 2 * len(levels[0]) - 2 - x)])

    bins = [0.0] * 9
    for y in range(top, top + size):
        for x in range(left, left + size):
            across = down = 0
            for offset, weight in ((-1, 1), (0, 2), (1, 1)):
                across += weight * (level(y + offset, x + 1) - level(y + offset, x - 1))
                down += weight * (level(y + 1, x + offset) - level(y - 1, x + offset))
            angle = math.degrees(math.atan2(across, down)) % 180
            bins[int(angle // 20)] += math.sqrt(across**2 + down**2)
    length = math.sqrt(sum(v * v for v in bins))
    return np.array(bins) / (length or 1)
