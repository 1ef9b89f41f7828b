"""I-JEPA's context and target blocks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv.rng import image_rngs
from occinv.transforms.multiblock import block_size, multiblock

SIDE, CONTEXT, TARGET, COUNT = 6, (5, 4), (2, 1), 3
IMAGES = 400


@pytest.fixture(scope="module")
def draw() -> Any:
    """A function of an order of the images' keys."""
    compiled = jax.jit(lambda keys: multiblock(keys, SIDE**2, CONTEXT, TARGET, COUNT))
    keys = image_rngs(jax.random.key(0), jnp.int32(0), IMAGES)
    return lambda order: jax.device_get(compiled(keys[order]))


@pytest.fixture(scope="module")
def drawn(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    return draw(np.arange(IMAGES))


def corner(ids: np.ndarray) -> tuple[int, int]:
    return int(ids[0]) // SIDE, int(ids[0]) % SIDE


def test_target_blocks_are_blocks_and_lie_everywhere(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    corners = set()
    for ids in drawn[1].reshape(-1, 2):
        row, column = corner(ids)
        assert ids.tolist() == [row * SIDE + column, (row + 1) * SIDE + column]
        corners.add((row, column))
    assert corners == {(row, column) for row in range(SIDE - 1) for column in range(SIDE)}
    first, second, _ = drawn[1].swapaxes(0, 1)
    assert 0 < (first == second).all(1).mean() < 0.2  # drawn each by itself


def test_a_context_is_a_block_without_the_targets(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    places = set()
    for visible, blocks in zip(*drawn, strict=True):
        assert visible.sum() == 5 * 4 - 3 * 2
        assert not visible[blocks].any()
        rows, columns = np.divmod(np.flatnonzero(visible), SIDE)
        assert np.ptp(rows) < 5 and np.ptp(columns) < 4
        if np.ptp(columns) == 3:
            places.add((columns.min(), corner(blocks[0])[1]))
    assert len(places) == 3 * 6  # the context does not follow a target block
    share = drawn[0].mean(0)
    np.testing.assert_allclose(share, share[::-1], atol=0.1)  # no side is seen more often


def test_an_image_has_what_its_own_key_draws(draw: Any, drawn: Any) -> None:
    order = np.random.default_rng(0).permutation(IMAGES)
    for expected, found in zip(drawn, draw(order), strict=True):
        np.testing.assert_array_equal(found, expected[order])


def test_sizes() -> None:
    assert block_size(196, 0.175, 1.125) == (6, 5)  # of 34 patches
    assert block_size(196, 0.925, 1.0) == (13, 13)
    assert block_size(196, 1.0, 1.0) == (13, 13)  # never a whole side
    assert block_size(256, 0.2, 1.5) == (9, 6)
