"""Rectangles of removed patches, compared with a plain loop that removes one after the other."""

from __future__ import annotations

import math
import random

import jax
import numpy as np
import pytest

from occinv.transforms import masking
from occinv.transforms.masking import rectangles_visible


def draw(images: int, grid: tuple[int, int], removed: int, smallest: int) -> np.ndarray:
    """Return bool [images, rows, columns], True where a patch is removed."""
    rng = jax.random.split(jax.random.key(0), images)
    visible = jax.jit(rectangles_visible, static_argnums=(1, 2, 3))(
        rng, grid, math.prod(grid) - removed, smallest
    )
    assert visible.shape == (images, math.prod(grid)) and visible.dtype == bool
    return ~np.asarray(visible).reshape(images, *grid)


def by_loop(rng: random.Random, grid: tuple[int, int], goal: int, smallest: int) -> np.ndarray:
    """Remove rectangles as BEiT does until exactly `goal` patches are removed."""
    removed = np.zeros(grid, bool)
    while removed.sum() < goal:
        missing = goal - int(removed.sum())
        area = rng.uniform(smallest, missing)
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= grid[0] or width >= grid[1]:
            continue
        top, left = rng.randint(0, grid[0] - height), rng.randint(0, grid[1] - width)
        rectangle = removed[top : top + height, left : left + width]
        if 0 < (~rectangle).sum() <= missing:
            rectangle[:] = True
    return removed


def edges(removed: np.ndarray) -> tuple[float, float]:
    """Count the neighbors that differ, along rows and along columns: means over the images."""
    return (
        (removed[:, :, 1:] != removed[:, :, :-1]).sum((1, 2)).mean(),
        (removed[:, 1:] != removed[:, :-1]).sum((1, 2)).mean(),
    )


@pytest.mark.parametrize(
    ("side", "removed", "smallest"), [(14, 75, 16), (14, 98, 16), (4, 6, 2), (2, 2, 16), (3, 8, 1)]
)
def test_the_number_of_removed_patches_is_exact(side: int, removed: int, smallest: int) -> None:
    found = draw(64, (side, side), removed, smallest)
    assert (found.sum((1, 2)) == removed).all()
    assert len({mask.tobytes() for mask in found}) > (2 if side < 4 else 24)


@pytest.mark.parametrize("grid", [(14, 14), (7, 28)])
def test_outlines_and_places_are_those_of_a_loop(grid: tuple[int, int]) -> None:
    """Single patches would have an outline three times as long."""
    found, rng = draw(600, grid, 75, 16), random.Random(0)
    expected = np.stack([by_loop(rng, grid, 75, 16) for _ in range(600)])
    np.testing.assert_allclose(edges(found), edges(expected), rtol=0.05)
    assert sum(edges(found)) < 0.35 * 2 * 14 * 13 * 2 * (75 / 196) * (121 / 196)
    np.testing.assert_allclose(found.mean((0, 1)), expected.mean((0, 1)), atol=0.06)
    np.testing.assert_allclose(found.mean((0, 2)), expected.mean((0, 2)), atol=0.06)
    # Some rectangles are high and some are wide.
    spans = [int(m.any(1).sum()) - int(m.any(0).sum()) for m in found]
    usual = np.median(spans)
    assert min(spans) < usual - 2 and max(spans) > usual + 2


def test_rectangles_span_a_side_as_rarely_as_those_of_a_loop() -> None:
    """No rectangle spans a side alone, but several together may, in the loop too."""

    def lines(removed: np.ndarray) -> float:
        return (removed.all(1) | removed.all(2)).any(1).mean()

    rng = random.Random(1)
    expected = lines(np.stack([by_loop(rng, (3, 3), 3, 3) for _ in range(600)]))
    assert lines(draw(600, (3, 3), 3, 3)) == pytest.approx(expected, abs=0.06)


def test_the_remaining_patches_are_removed_beside_rectangles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After three attempts nearly every image has a rectangle and lacks a few more patches."""
    monkeypatch.setattr(masking, "ATTEMPTS", 3)
    with_single = 0
    for removed in draw(64, (10, 10), 20, 16):
        around = np.pad(removed, 1)
        beside = around[2:, 1:-1] | around[:-2, 1:-1] | around[1:-1, 2:] | around[1:-1, :-2]
        assert removed.sum() == 20
        with_single += (removed & ~beside).any()
    assert with_single < 4


def test_the_position_in_the_batch_does_not_matter() -> None:
    rng = jax.random.split(jax.random.key(1), 8)
    draw = jax.jit(rectangles_visible, static_argnums=(1, 2, 3))
    np.testing.assert_array_equal(
        draw(rng[::-1], (8, 8), 40, 4), np.asarray(draw(rng, (8, 8), 40, 4))[::-1]
    )
