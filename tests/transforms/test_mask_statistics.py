"""The masks of the published configs against statistics of the official generators.

The official statistics are of 3,000 images of 14 × 14 patches. They and ours have a sampling error,
so a mean may differ by four deviations of the difference of two means of 3,000 images, and by the
rounding of the official number.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.models import vit
from occinv.objectives.base import Setting, make_objective
from occinv.rng import image_rngs
from occinv.transforms.color import Appearance, ColorJitter
from occinv.transforms.view import View

IMAGES, SIDE = 3000, 14


@pytest.fixture(autouse=True)
def without_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks do not depend on colors, which take long to trace."""
    for part in (Appearance, ColorJitter):
        monkeypatch.setattr(part, "__call__", lambda self, rng, pixels: pixels)


@functools.cache
def draw(name: str, *overrides: str) -> tuple[np.ndarray, np.ndarray]:
    """Return `visible`, bool [IMAGES, 14, 14], of the first two views of a published config."""
    experiment = schema.resolve(load_config(str(CONFIGS / f"{name}.py"), overrides))
    encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
    objective: Any = make_objective(experiment.objective, Setting(encoder, 10, 100))

    def visible(rng: jax.Array) -> list[jax.Array]:
        # Not an argument, so that the compiler drops the pixels: masks do not depend on them.
        image = jnp.zeros((IMAGES, encoder.image_size, encoder.image_size, 3))
        views: tuple[View, ...] = objective.views((image, image) if objective.crops else image, rng)
        return [view.visible for view in views]

    rng = image_rngs(jax.random.key(0), jnp.int32(0), IMAGES)
    first, second = jax.device_get(jax.jit(visible)(rng))
    return first.reshape(-1, SIDE, SIDE), second.reshape(-1, SIDE, SIDE)


def sampling_error(values: np.ndarray) -> float:
    """Return four deviations of the difference of two means of as many values."""
    return 4 * values.std() * math.sqrt(2 / len(values))


def adjacency(removed: np.ndarray) -> np.ndarray:
    """Return the mean number of removed neighbors, of four, of a removed patch: [B] of [B, h, w].

    A neighbor outside the image counts as one that is not removed.
    """
    around = np.pad(removed, ((0, 0), (1, 1), (1, 1))).astype(int)
    beside = around[:, 2:, 1:-1] + around[:, :-2, 1:-1] + around[:, 1:-1, 2:] + around[:, 1:-1, :-2]
    return (beside * removed).sum((1, 2)) / removed.sum((1, 2))


def test_adjacency() -> None:
    removed = np.zeros((2, 3, 3), bool)
    removed[0, :2, :2] = True  # each of four patches has two removed neighbors
    removed[1, 0] = removed[1, 2, 2] = True  # 1 + 2 + 1 + 0 of four patches
    assert adjacency(removed).tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("name", "count", "official"), [("beit", 75, 3.36), ("cae", 98, 3.45), ("data2vec", 120, 3.52)]
)
def test_removed_rectangles(name: str, count: int, official: float) -> None:
    removed = ~draw(name)[0]
    assert (removed.sum((1, 2)) == count).all()
    found = adjacency(removed)
    assert found.mean() == pytest.approx(official, abs=0.005 + sampling_error(found))


def test_ibot() -> None:
    """The official generator removes up to one patch fewer in the mean, because it may give up."""
    first, second = draw("ibot", "--config.objective.local_crops=0")
    assert (first != second).any((1, 2)).mean() > 0.7  # each large crop has its own mask
    counts = (~first).sum((1, 2))
    is_masked = counts > 0
    assert is_masked.mean() == pytest.approx(0.497, abs=0.0005 + sampling_error(is_masked))
    counts = counts[is_masked]
    assert counts.mean() == pytest.approx(57.4, abs=0.05 + sampling_error(counts))
    # The error of a deviation is at most 1 / sqrt(2) of that of a mean: counts have no long tails.
    assert counts.std() == pytest.approx(22.7, abs=0.05 + sampling_error(counts) / math.sqrt(2))
    assert (counts.min(), counts.max()) == (19, 97)  # 10 to 50 % of 196, rounded down


def test_ijepas_context() -> None:
    """The official collator keeps 52.2 ± 7.5 patches, as many as the batch's smallest context.

    Ours keeps 49. The 3.2 patches that it keeps fewer are the last ones in raster order, of 70 in
    the five rows at the bottom; this is the difference that is allowed.
    """
    visible, _ = draw("ijepa")
    count = visible.sum((1, 2)).mean()
    assert count == pytest.approx(52.2, abs=7.5)
    allowed = (52.2 - count) / (5 * SIDE) + 0.005
    assert visible[:, :5].mean() == pytest.approx(0.50, abs=allowed)
    assert visible[:, -5:].mean() == pytest.approx(0.09, abs=allowed)


def test_ijepas_context_equals_a_loops() -> None:
    """The share of images that see a patch, row by row, is that of a plain loop."""
    draws = np.random.default_rng(0)
    expected = np.zeros((IMAGES, SIDE * SIDE), bool)
    for image in range(IMAGES):
        rest = np.zeros((SIDE, SIDE), bool)
        top, left = draws.integers(0, 2, 2)
        rest[top : top + 13, left : left + 13] = True
        for _ in range(4):
            top, left = draws.integers(0, SIDE - 6 + 1), draws.integers(0, SIDE - 5 + 1)
            rest[top : top + 6, left : left + 5] = False
        expected[image, np.flatnonzero(rest)[:49]] = True
    visible, _ = draw("ijepa")
    assert (visible.sum((1, 2)) == 49).all()
    found, shares = visible.mean(2), expected.reshape(IMAGES, SIDE, SIDE).mean(2)
    for row in range(SIDE):
        error = sampling_error(shares[:, row])
        assert found[:, row].mean() == pytest.approx(shares[:, row].mean(), abs=error)


def test_a_random_context_has_as_many_patches_at_the_top_as_at_the_bottom() -> None:
    visible, _ = draw("ijepa", "--config.objective.context_choice=random")
    assert (visible.sum((1, 2)) == 49).all()
    top, bottom = visible[:, :5].mean((1, 2)), visible[:, -5:].mean((1, 2))
    assert top.mean() == pytest.approx(bottom.mean(), abs=sampling_error(top))
    assert top.mean() == pytest.approx(0.28, abs=0.005 + sampling_error(top))
