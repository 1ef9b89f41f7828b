"""k-means of patches: its means, and the id of a patch."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import pytest

from occinv.models.tokenizers.base import make_tokenizer
from occinv.models.tokenizers.kmeans import KMeans
from occinv.schema import UserError

PATCH, SIDE = 2, 3
COLORS = np.array([[250, 10, 10], [20, 240, 30], [0, 0, 255], [200, 200, 200]], np.uint8)


def tokenizer(**fields: int) -> KMeans:
    section = {"name": "kmeans", "num_ids": len(COLORS), **fields}
    found = make_tokenizer(section, SIDE * PATCH, PATCH)
    assert isinstance(found, KMeans) and found.grid == (SIDE, SIDE)
    return found


def batches(count: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Return images in which every patch is one of the colors with a little noise."""
    rng = np.random.default_rng(seed)
    which = rng.integers(len(COLORS), size=(count, 4, SIDE, SIDE))
    pixels = COLORS[which].repeat(PATCH, 2).repeat(PATCH, 3).astype(int)
    return list(np.clip(pixels + rng.integers(-9, 10, pixels.shape), 0, 255).astype(np.uint8))


def fitted(given: KMeans, images: list[np.ndarray]) -> np.ndarray:
    return given.obtain(lambda _: pytest.fail("no other run"), lambda: iter(images))()["means"]


def test_one_pass_finds_the_colors() -> None:
    means = fitted(tokenizer(), batches(12))
    assert means.shape == tokenizer().shapes()["means"].shape and means.dtype == np.float32
    flat = np.rint(255 * means).astype(int).reshape(len(COLORS), -1, 3)
    for color in COLORS.astype(int):
        assert np.abs(flat - color).max((1, 2)).min() <= 10


def test_an_id_is_the_number_of_the_nearest_mean() -> None:
    rng = np.random.default_rng(1)
    means = rng.random((5, 3 * PATCH**2)).astype(np.float32)
    pixels = rng.random((2, SIDE * PATCH, SIDE * PATCH, 3)).astype(np.float32)
    found = jax.jit(tokenizer(num_ids=5).ids)({"means": means}, pixels)
    assert found.dtype == np.int32 and found.shape == (2, SIDE**2)
    for b in range(2):
        for row in range(SIDE):
            for column in range(SIDE):
                y, x = row * PATCH, column * PATCH
                patch = pixels[b, y : y + PATCH, x : x + PATCH].astype(float).ravel()
                nearest = min(range(5), key=lambda k: ((patch - means[k]) ** 2).sum())
                assert found[b, row * SIDE + column] == nearest


def test_means_depend_on_the_images_and_nothing_else() -> None:
    first, again = (fitted(tokenizer(), batches()) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (fitted(tokenizer(), batches(seed=1)) != first).any()


def test_fitting_reads_no_more_than_fit_images() -> None:
    seen = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal seen
        for batch in batches(10):
            seen += len(batch)
            yield batch

    few = tokenizer(fit_images=6)
    means = few.obtain(lambda _: pytest.fail("no other run"), images)()["means"]
    assert seen == 8  # two batches of 4
    first, second, *_ = batches(10)
    np.testing.assert_array_equal(means, fitted(few, [first, second[:2]]))


def test_more_ids_than_patches_are_refused() -> None:
    message = r"num_ids=200, but the 12 images have only 108 patches"
    with pytest.raises(UserError, match=message):
        fitted(tokenizer(num_ids=200), batches())
    # A single batch may have fewer.
    assert len(fitted(tokenizer(num_ids=100), batches())) == 100


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "kmean"}, "unknown objective.tokenizer.name='kmean' (did you mean 'kmeans'?)"),
        ({}, "unknown objective.tokenizer.name=''"),
        ({"name": "kmeans", "ids": 3}, "unknown field 'objective.tokenizer.ids'"),
    ],
)
def test_mistakes_in_the_config(section: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_tokenizer(section, 8, 2)
    assert message in str(caught.value) and "\n" not in str(caught.value)
