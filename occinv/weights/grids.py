"""Finds the grid of patches of a position embedding, and computes fixed position embeddings."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from occinv.models.position import sincos
from occinv.schema import UserError

Grid = tuple[int, int]  # rows and columns of patches


class Rows(NamedTuple):
    """The rows of a position embedding.

    Attributes:
      side: Patches a side of the square grid.
      first: The number of rows before those of the patches.
    """

    side: int
    first: int


def find_rows(name: str, count: int, first: tuple[int, ...], grid: Grid | None) -> Rows:
    """Return what the `count` rows of a position embedding stand for.

    Args:
      name: The embedding, for errors.
      count: The number of its rows.
      first: The possible numbers of rows before the patches, the usual one first.
      grid: The true grid, if it is known.

    Raises:
      UserError: The grid is not square, does not fit, or cannot be known from `count`.
    """
    if grid is not None:
        check_square(name, grid)
        known = next((n for n in first if count - n == math.prod(grid)), None)
        if known is None:
            patches = " or ".join(str(count - n) for n in first)
            raise UserError(
                f"{name} has {count} positions, which are {patches} patches. Expected the "
                f"{math.prod(grid)} patches of the grid {grid[0]}x{grid[1]}."
            )
        return Rows(grid[0], known)
    side = math.isqrt(max(count - first[0], 0))
    if side and side**2 == count - first[0]:
        return Rows(side, first[0])
    grids = sorted(
        {(h, (count - n) // h) for n in first for h in _divisors(count - n)},
        key=lambda grid: (grid[1] - grid[0], grid),
    )
    raise UserError(
        f"{name} has {count} positions, which may be a grid of "
        f"{', '.join(f'{h}x{w}' for h, w in grids[:6]) or 'no patches'}. Expected a square grid "
        "with a known size: pass --grid HxW."
    )


def check_square(name: str, grid: Grid) -> None:
    """Raise UserError for a grid that is not square."""
    if grid[0] != grid[1]:
        raise UserError(
            f"{name} has a grid of {grid[0]}x{grid[1]} patches. Expected a square grid: our ViT "
            "reads square images."
        )


def table_side(name: str, count: int, grid: Grid | None) -> int:
    """Return patches a side of BEiT's table of relative positions, which has `count` rows.

    The table of a grid of H x W patches has (2 H - 1) (2 W - 1) + 3 rows.
    """
    side = (math.isqrt(max(count - 3, 0)) + 1) // 2
    height, width = grid or (side, side)
    check_square(name, (height, width))
    if (2 * height - 1) * (2 * width - 1) + 3 != count or not height:
        raise UserError(
            f"{name} has {count} rows. Expected (2 S - 1)² + 3 for a square grid of S"
            + (f" = {height}." if grid else ".")
        )
    return height


def _divisors(count: int) -> list[int]:
    """Return the divisors of `count` up to its square root; none for 0 and for huge numbers."""
    return [h for h in range(1, math.isqrt(min(max(count, 0), 10**8)) + 1) if count % h == 0]


def moco_sincos(side: int, width: int) -> np.ndarray:
    """Compute MoCo v3's table (`vits.py`), float32 [1 + side², width].

    It encodes the row in the first half of the channels, MAE's in the second.
    """
    return np.roll(sincos(side, width), width // 2, axis=1)


def big_vision_sincos(side: int, width: int) -> np.ndarray:
    """Compute big_vision's table (`posemb_sincos_2d`), float32 [1 + side², width].

    It differs from MAE's in the frequencies: the last is 1 / 10000 exactly. The class token has a
    row of zeros. `width` is a multiple of 4, and at least 8.
    """
    frequency = 10000.0 ** -np.linspace(0, 1, width // 4)
    angle = np.arange(side)[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    column, row = np.tile(line, (side, 1)), np.repeat(line, side, axis=0)
    grid = np.concatenate([column, row], axis=1)
    return np.concatenate([np.zeros((1, width)), grid]).astype(np.float32)


SINCOS_TABLES = {"mae": sincos, "mocov3": moco_sincos, "big_vision": big_vision_sincos}


def fixed_table(position: np.ndarray) -> str | None:
    """Return the origin (`mae`, `mocov3`) whose fixed table `position` [1 + N, D] is, or None."""
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
