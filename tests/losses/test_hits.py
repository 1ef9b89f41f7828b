"""Accuracy: which images count as hits."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from occinv.losses.classification import hits

NAN = float("nan")


def of(logits: list[list[float]], label: list[int]) -> tuple[list[float], list[float]]:
    found = hits(jnp.array(logits), jnp.array(label))
    assert found["top1"].dtype == found["top5"].dtype == jnp.float32
    return found["top1"].tolist(), found["top5"].tolist()


def test_hits_are_those_of_a_sort() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 9)).astype(np.float32)
    label = generator.integers(0, 9, 200)
    found = hits(jnp.asarray(logits), jnp.asarray(label))
    ranked = np.argsort(-logits, axis=1)
    for count in (1, 5):
        expected = (ranked[:, :count] == label[:, None]).any(1)
        np.testing.assert_array_equal(found[f"top{count}"], expected)
        assert 0 < expected.mean() < 1


def test_a_tie_is_a_miss() -> None:
    assert of([[1, 1, 0], [1, 1, 0], [2, 1, 1]], [0, 1, 0]) == ([0, 0, 1], [1, 1, 1])
    # With five others as good, an image is not among the best five.
    assert of([[1] * 6 + [0]], [2]) == ([0], [0])
    assert of([[1] * 5 + [0, 0]], [2]) == ([0], [1])
    assert of([[0] * 10] * 10, list(range(10))) == ([0] * 10, [0] * 10)


@pytest.mark.parametrize("logits", [[NAN, 0.0], [NAN, NAN], [0.0, NAN]])
def test_nan_is_a_miss(logits: list[float]) -> None:
    assert of([logits], [0])[0] == [0]


def test_classes_that_are_ruled_out_never_win() -> None:
    assert of([[-np.inf, 1.0, 0.0], [0.0, -np.inf, -np.inf]], [1, 0])[0] == [1, 1]


def test_of_five_classes_or_fewer_all_distinct_logits_are_in_the_best_five() -> None:
    assert of([[3.0, 2.0, 1.0]] * 3, [0, 1, 2]) == ([1, 0, 0], [1, 1, 1])
