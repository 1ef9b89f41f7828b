"""HOG against loops over pixels, pictures with known edges, and scikit-image."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_hog import hog_of_cell
from skimage.feature import hog as skimage_hog

from occinv.transforms.hog import BINS, hog

SIZE = 12


def histograms(levels: np.ndarray, cell_size: int) -> np.ndarray:
    """Return [rows, columns, channels, 9] of one image with levels [H, W, 3]."""
    pixels = jnp.asarray(levels, jnp.float32)[None] / 255
    (found,) = jax.jit(hog, static_argnums=1)(pixels, cell_size)
    return np.asarray(found).reshape(*found.shape[:2], 3, BINS)


def picture(levels: np.ndarray) -> np.ndarray:
    """Return an image with levels [H, W] in its green channel."""
    image = np.zeros((*levels.shape, 3))
    image[:, :, 1] = levels
    return image


@pytest.mark.parametrize("cell_size", [2, 4, 6])
@pytest.mark.parametrize("levels", [4, 256])
def test_hog_is_a_loop_over_pixels(levels: int, cell_size: int) -> None:
    """With four levels, many gradients are exactly horizontal, vertical or zero."""
    image = np.random.default_rng(levels).integers(0, levels, (SIZE, SIZE + cell_size, 3))
    found = histograms(image, cell_size)
    assert found.shape[:2] == (SIZE // cell_size, SIZE // cell_size + 1)
    for row, column, channel in np.ndindex(found.shape[:3]):
        corner = row * cell_size, column * cell_size
        expected = hog_of_cell(image[:, :, channel], *corner, cell_size)
        np.testing.assert_allclose(found[row, column, channel], expected, atol=1e-5)


y, x = np.indices((SIZE, SIZE))
EDGES = {  # the picture, and the bin of its edges in a cell off the border
    "horizontal": (200 * (y > 5), 0),
    "vertical": (200 * (x > 5), 4),
    "rising": (9 * (y + x), 2),
    "falling": (9 * (y - x) + 100, 6),
}


@pytest.mark.parametrize("edge", EDGES)
def test_edges_fall_in_the_bin_of_their_orientation(edge: str) -> None:
    levels, expected = EDGES[edge]
    for shown in (levels, 255 - levels, levels // 3):
        found = histograms(picture(shown), 4)[1, 1]
        np.testing.assert_allclose(found[1], np.eye(BINS)[expected], atol=0.02)
        assert not found[0].any() and not found[2].any()  # channels of one color


def test_a_horizontal_edge_stays_in_the_first_bin_where_arctan2_rounds_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An accelerator's arctan2 may give less than 180°, which would be the last bin."""
    exact = jnp.arctan2
    monkeypatch.setattr(jnp, "arctan2", lambda a, b: exact(a, b) * (1 - 1e-6))
    found = hog(jnp.asarray(picture(200 * (y < 6)), jnp.float32)[None] / 255, 4)
    np.testing.assert_allclose(found[0, 1, 1, BINS : 2 * BINS], np.eye(BINS)[0], atol=1e-6)


def test_orientations_are_those_of_scikit_image() -> None:
    """Its filters have no smoothing, which on a quadratic picture is a factor of four.

    Its angle is that of the gradient instead of the edge, here in 18 bins of 10°.
    """
    levels = 2 * y**2 + 11 * x - 2 * y * x
    assert levels.min() >= 0 and levels.max() <= 255
    theirs = skimage_hog(
        levels.astype(float), 18, (4, 4), (1, 1), block_norm="L2", feature_vector=False
    )[1, 1, 0, 0]
    expected = np.zeros(BINS)
    for number, votes in enumerate(theirs):
        expected[int((90 - (10 * number + 5)) % 180 // 20)] += votes
    assert (expected > 0.01).sum() > 3
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(histograms(picture(levels), 4)[1, 1, 1], expected, atol=1e-5)
