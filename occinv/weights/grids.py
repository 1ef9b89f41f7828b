"""Finds the grid of patches of a position embedding, and computes fixed position embeddings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from occinv.models.position import sincos
from occinv.schema import UserError
from occinv.size import Grid, Size, sides


class Rows(NamedTuple):
    """The rows of a position embedding.

    Attributes:
      grid: Rows and columns of the patches.
      first: The number of rows before those of the patches.
    """

    grid: Grid
    first: int


def find_rows(name: str, count: int, first: tuple[int, ...], grid: Grid | None) -> Rows:
    """Return what the `count` rows of a position embedding stand for.

    Args:
      name: The embedding, for errors.
      count: The number of its rows.
      first: The possible numbers of rows before the patches, the usual one first.
      grid: The true grid, if it is known.

    Raises:
      UserError: The grid does not fit, or cannot be known from `count`: it is not a square.
    """
    if grid is not None:
        known = next((n for n in first if count - n == math.prod(grid)), None)
        if known is None:
            patches = " or ".join(str(count - n) for n in first)
            raise UserError(
                f"{name} has {count} positions, which are {patches} patches. Expected the "
                f"{math.prod(grid)} patches of the grid {grid[0]}x{grid[1]}."
            )
        return Rows(grid, known)
    side = math.isqrt(max(count - first[0], 0))
    if side and side**2 == count - first[0]:
        return Rows((side, side), first[0])
    grids = sorted(
        {(h, (count - n) // h) for n in first for h in _divisors(count - n)},
        key=lambda grid: (grid[1] - grid[0], grid),
    )
    raise UserError(
        f"{name} has {count} positions, which may be a grid of "
        f"{', '.join(f'{h}x{w}' for h, w in grids[:6]) or 'no patches'}. Expected a square grid, "
        "or a known one: pass --grid HxW."
    )


def table_grid(name: str, count: int, grid: Grid | None) -> Grid:
    """Return the grid of BEiT's table of relative positions, which has `count` rows.

    The table of a grid of H x W patches has (2 H - 1) (2 W - 1) + 3 rows.
    """
    side = (math.isqrt(max(count - 3, 0)) + 1) // 2
    height, width = grid or (side, side)
    if (2 * height - 1) * (2 * width - 1) + 3 != count or not height:
        raise UserError(
            f"{name} has {count} rows. Expected (2 H - 1) (2 W - 1) + 3 for a grid of "
            + (f"{height}x{width}." if grid else "HxW. If it is no square, pass --grid HxW.")
        )
    return height, width


def _divisors(count: int) -> list[int]:
    """Return the divisors of `count` up to its square root; none for 0 and for huge numbers."""
    return [h for h in range(1, math.isqrt(min(max(count, 0), 10**8)) + 1) if count % h == 0]


def moco_sincos(grid: Size, width: int) -> np.ndarray:
    """Compute MoCo v3's table (`vits.py`) of a grid, float32 [1 + N, width].

    It encodes the row in the first half of the channels, MAE's in the second.
    """
    return np.roll(sincos(grid, width), width // 2, axis=1)


def big_vision_sincos(grid: Size, width: int) -> np.ndarray:
    """Compute big_vision's table (`posemb_sincos_2d`) of a grid, float32 [1 + N, width].

    It differs from MAE's in the frequencies: the last is 1 / 10000 exactly. The class token has a
    row of zeros. `width` is a multiple of 4, and at least 8.
    """
    frequency = 10000.0 ** -np.linspace(0, 1, width // 4)
    rows, columns = sides(grid)
    angle = np.arange(max(rows, columns))[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    column, row = np.tile(line[:columns], (rows, 1)), np.repeat(line[:rows], columns, axis=0)
    both = np.concatenate([column, row], axis=1)
    return np.concatenate([np.zeros((1, width)), both]).astype(np.float32)


SINCOS_TABLES = {"mae": sincos, "mocov3": moco_sincos, "big_vision": big_vision_sincos}


def fixed_table(position: np.ndarray) -> str | None:
    """Return the origin (`mae`, `mocov3`) whose table of a square grid is `position` [1 + N, D]."""
    count, width = position.shape
    side = math.isqrt(max(count - 1, 0))
    if side**2 != count - 1 or not side or width % 4:
        return None
    for origin in ("mae", "mocov3"):
        if np.allclose(
            position, SINCOS_TABLES[origin](side, width), atol=5e-3
        ):  # files may be in bfloat16
            return origin
    return None
