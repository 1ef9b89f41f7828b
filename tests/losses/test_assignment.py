"""Sinkhorn-Knopp and the mean-entropy term: what they promise, and extreme values."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from occinv.losses.assignment import mean_entropy_gap, sinkhorn

DRAW = np.random.default_rng(0)
WEIGHT = np.array([1, 2, 0, 1, 3], np.float32)
SHARE = WEIGHT / WEIGHT.sum()
LOGITS = (3 * DRAW.standard_normal((5, 3))).astype(np.float32)


def test_many_iterations_use_every_prototype_equally_often() -> None:
    q = np.exp(sinkhorn(LOGITS, SHARE, iterations=200))
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(SHARE @ q, [1 / 3] * 3, rtol=1e-3)
    assert not np.allclose(SHARE @ np.asarray(jax.nn.softmax(LOGITS)), 1 / 3, atol=0.05)


def test_padding_does_not_move_the_assignments_of_other_images() -> None:
    other = np.where(SHARE[:, None] > 0, LOGITS, np.float32(50))
    real = SHARE > 0
    np.testing.assert_allclose(
        sinkhorn(other, SHARE)[real], sinkhorn(LOGITS[real], SHARE[real]), rtol=1e-5
    )


def test_a_prototype_that_no_image_is_near_stays_finite() -> None:
    logits = LOGITS - np.array([0, 0, 500], np.float32)
    q = np.exp(sinkhorn(logits, SHARE))
    assert np.isfinite(q).all()
    np.testing.assert_allclose(q, np.exp(sinkhorn(LOGITS, SHARE)), rtol=1e-3)


@pytest.mark.parametrize(("rows", "expected"), [([0, 1, 2], 0.0), ([1, 1, 1], math.log(3))])
def test_the_mean_entropy_gap_lies_between_0_and_log_k(rows: list[int], expected: float) -> None:
    certain = np.eye(3, dtype=np.float32)[rows][:, None]
    share = np.full(3, 1 / 3, np.float32)
    assert mean_entropy_gap(certain, share) == pytest.approx(expected, abs=1e-6)
