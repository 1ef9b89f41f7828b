"""Masks: the number of visible patches, their order, and their pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv.schema import UserError
from occinv.transforms.masking import (
    kept_patches,
    lowest,
    paint,
    random_visible,
    squares_visible,
    visible_ids,
)


@pytest.mark.parametrize(
    ("count", "ratio", "kept"),
    [
        (196, 0.75, 49),
        (64, 0.75, 16),
        (64, 0.9, 6),  # 6.4, rounded down as the official code rounds
        (10, 0.9, 1),  # 10 · (1 - 0.9) is 0.9999999999999998 in binary
        (10, 0.7, 3),
        (16, 0.25, 12),
        (2, 0.5, 1),
    ],
)
def test_kept_patches(count: int, ratio: float, kept: int) -> None:
    assert kept_patches(count, ratio) == kept


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_an_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=f"mask ratio {ratio}, expected"):
        kept_patches(16, ratio)


def test_a_ratio_that_leaves_no_patch_is_refused() -> None:
    with pytest.raises(UserError, match="leaves none of 4 patches visible"):
        kept_patches(4, 0.9)


def test_lowest_noise_stays_visible() -> None:
    noise = jnp.array([[0.3, 0.1, 0.9, 0.2], [0.0, 0.5, 0.4, 0.6]])
    np.testing.assert_array_equal(
        lowest(noise, 2), [[False, True, False, True], [True, False, True, False]]
    )


def test_the_number_of_visible_patches_is_exact_even_with_equal_noise() -> None:
    np.testing.assert_array_equal(lowest(jnp.zeros((3, 7)), 2).sum(1), [2, 2, 2])


def test_visible_ids_are_in_raster_order() -> None:
    visible = jnp.array([[False, True, False, True, True], [True, True, False, False, True]])
    np.testing.assert_array_equal(visible_ids(visible, 3), [[1, 3, 4], [0, 1, 4]])


def test_random_visible_draws_each_image_by_its_own_key() -> None:
    rng = jax.random.split(jax.random.key(0), 32)
    visible = np.asarray(random_visible(rng, 16, 4))
    assert visible.shape == (32, 16) and visible.dtype == bool
    assert (visible.sum(1) == 4).all()
    assert len({row.tobytes() for row in visible}) > 24
    # The position of an image in the array of keys does not matter.
    np.testing.assert_array_equal(random_visible(rng[::-1], 16, 4), visible[::-1])


def test_squares_are_visible_or_removed_as_a_whole() -> None:
    rng = jax.random.split(jax.random.key(0), 32)
    visible = np.asarray(squares_visible(rng, (4, 10), 4, 2))
    assert visible.shape == (32, 40) and visible.dtype == bool
    squares = visible.reshape(32, 2, 2, 5, 2)
    np.testing.assert_array_equal(squares.any((2, 4)), squares.all((2, 4)))
    assert (squares.any((2, 4)).sum((1, 2)) == 4).all()
    assert squares.any((0, 2, 4)).all() and not squares.all((2, 4)).all(0).any()
    assert len({row.tobytes() for row in visible}) > 24
    np.testing.assert_array_equal(squares_visible(rng[::-1], (4, 10), 4, 2), visible[::-1])
    # Squares of one patch are patches.
    np.testing.assert_array_equal(squares_visible(rng, (6, 6), 9, 1), random_visible(rng, 36, 9))


def test_paint_sets_the_other_patches_to_zero() -> None:
    pixels = np.random.default_rng(0).random((2, 4, 6, 3)).astype(np.float32) + 1
    visible = np.array([[1, 0, 0, 0, 1, 1], [0, 1, 1, 0, 0, 0]], bool)  # 2 rows of 3 patches
    painted = np.asarray(paint(jnp.asarray(pixels), jnp.asarray(visible), 2))
    for b in range(2):
        for y in range(4):
            for x in range(6):
                seen = visible[b, (y // 2) * 3 + x // 2]
                expected = pixels[b, y, x] if seen else np.zeros(3)
                np.testing.assert_array_equal(painted[b, y, x], expected)
