"""I-JEPA's context and target rectangles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv.rng import image_rngs
from occinv.transforms.multiblock import multiblock, rectangle_size

ROWS, COLUMNS = 6, 7
CONTEXT, TARGET, COUNT = (5, 4), (2, 1), 3
IMAGES = 400


@pytest.fixture(scope="module")
def draw() -> Any:
    """Return a function that draws for the images in a given order."""
    compiled = jax.jit(
        lambda rng: multiblock(rng, (ROWS, COLUMNS), CONTEXT, TARGET, COUNT, "random")
    )
    rng = image_rngs(jax.random.key(0), jnp.int32(0), IMAGES)
    return lambda order: jax.device_get(compiled(rng[order]))


@pytest.fixture(scope="module")
def drawn(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    return draw(np.arange(IMAGES))


def corner(ids: np.ndarray) -> tuple[int, int]:
    return int(ids[0]) // COLUMNS, int(ids[0]) % COLUMNS


def test_targets_are_rectangles_at_every_place(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    corners = set()
    for ids in drawn[1].reshape(-1, 2):
        row, column = corner(ids)
        assert ids.tolist() == [row * COLUMNS + column, (row + 1) * COLUMNS + column]
        corners.add((row, column))
    assert corners == {(row, column) for row in range(ROWS - 1) for column in range(COLUMNS)}
    first, second, _ = drawn[1].swapaxes(0, 1)
    assert 0 < (first == second).all(1).mean() < 0.2  # independent of each other


def test_a_context_is_a_rectangle_without_the_targets(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    places = set()
    for visible, targets in zip(*drawn, strict=True):
        assert visible.sum() == 5 * 4 - 3 * 2
        assert not visible[targets].any()
        rows, columns = np.divmod(np.flatnonzero(visible), COLUMNS)
        assert np.ptp(rows) < 5 and np.ptp(columns) < 4
        if np.ptp(columns) == 3:
            places.add((columns.min(), corner(targets[0])[1]))
    assert len(places) == 4 * 7  # the context does not depend on a target
    share = drawn[0].mean(0)
    np.testing.assert_allclose(share, share[::-1], atol=0.1)  # no side is more likely


def test_the_first_remaining_patches_are_kept_by_default(
    drawn: tuple[np.ndarray, np.ndarray],
) -> None:
    rng = image_rngs(jax.random.key(0), jnp.int32(0), IMAGES)
    first, same_targets = jax.jit(
        lambda rng: multiblock(rng, (ROWS, COLUMNS), CONTEXT, TARGET, COUNT)
    )(rng)
    np.testing.assert_array_equal(same_targets, drawn[1])
    differing = 0
    for visible, chosen, targets in zip(np.asarray(first), *drawn, strict=True):
        last = np.flatnonzero(visible)[-1]
        places = []  # of contexts whose first remaining patches are the visible ones
        for row in range(ROWS - CONTEXT[0] + 1):
            for column in range(COLUMNS - CONTEXT[1] + 1):
                rest = np.zeros((ROWS, COLUMNS), bool)
                rest[row : row + CONTEXT[0], column : column + CONTEXT[1]] = True
                rest = rest.reshape(-1)
                rest[targets] = False
                kept = (rest[: last + 1] == visible[: last + 1]).all()
                if kept and not (chosen & ~rest).any():  # the random choice is of the same context
                    places.append((row, column))
        assert visible.sum() == 5 * 4 - 3 * 2 and places
        differing += (visible != chosen).any()
    assert differing > IMAGES / 4


def test_each_image_draws_by_its_own_key(draw: Any, drawn: Any) -> None:
    order = np.random.default_rng(0).permutation(IMAGES)
    for expected, found in zip(drawn, draw(order), strict=True):
        np.testing.assert_array_equal(found, expected[order])


def test_sizes() -> None:
    assert rectangle_size((14, 14), 0.175, 1.125) == (6, 5)  # of 34 patches
    assert rectangle_size((14, 14), 0.925, 1.0) == (13, 13)
    assert rectangle_size((14, 14), 1.0, 1.0) == (13, 13)  # it never spans a whole side
    assert rectangle_size((16, 16), 0.2, 1.5) == (9, 6)
    assert rectangle_size((4, 49), 0.175, 1.125) == (3, 5)
    assert rectangle_size((49, 4), 0.175, 1 / 1.125) == (5, 3)
