"""Losses against loops, SciPy and extreme values."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from occinv.losses.classification import cross_entropy
from occinv.losses.contrastive import byol, cosine, info_nce, similarities, unit
from occinv.losses.distillation import smooth_l1
from occinv.losses.reconstruction import (
    mean_over,
    normalize_patches,
    patch_distance,
    patch_statistics,
)

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_patch_statistics_use_the_unbiased_variance() -> None:
    patches = normal(2, 3, 5) * 4 + 1
    mean, deviation = patch_statistics(jnp.asarray(patches))
    for b in range(2):
        for n in range(3):
            values = [float(v) for v in patches[b, n]]
            average = sum(values) / 5
            variance = sum((v - average) ** 2 for v in values) / 4
            assert mean[b, n, 0] == pytest.approx(average, rel=1e-5)
            assert deviation[b, n, 0] == pytest.approx(math.sqrt(variance + 1e-6), rel=1e-5)


def test_a_patch_of_one_color_is_normalized_to_zero() -> None:
    np.testing.assert_allclose(normalize_patches(jnp.full((1, 2, 4), 0.5)), 0, atol=1e-6)


def test_patch_distance_is_the_mean_over_the_region() -> None:
    first, second = normal(2, 4, 3), normal(2, 4, 3)
    region = np.array([[True, False, True, False], [False, False, False, True]])
    found = patch_distance(jnp.asarray(first), jnp.asarray(second), jnp.asarray(region))
    squared = (first.astype(float) - second) ** 2
    expected = [(squared[0, 0].mean() + squared[0, 2].mean()) / 2, squared[1, 3].mean()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_mean_over_an_empty_region_is_zero() -> None:
    np.testing.assert_array_equal(mean_over(jnp.ones((1, 3)), jnp.zeros((1, 3), bool)), [0])


def test_cosine_and_byol() -> None:
    first, second = normal(4, 6), normal(4, 6)
    expected = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(first.astype(float), second.astype(float), strict=True)
    ]
    np.testing.assert_allclose(cosine(first, second), expected, rtol=1e-5)
    np.testing.assert_allclose(byol(first, second), 2 - 2 * np.array(expected), rtol=1e-5)
    distance = np.square(np.asarray(unit(first)) - np.asarray(unit(second))).sum(-1)
    np.testing.assert_allclose(byol(first, second), distance, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e15])
def test_unit_has_a_finite_value_and_gradient_at_any_length(scale: float) -> None:
    vector = jnp.asarray(normal(5)) * scale
    value, gradient = jax.value_and_grad(lambda v: unit(v)[0])(vector)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, 1e15])
def test_cosine_divides_by_lengths_of_at_least_1e_12(scale: float) -> None:
    first, second = normal(5) * np.float32(scale), normal(5)
    value, gradient = jax.value_and_grad(cosine, argnums=(0, 1))(first, second)
    lengths = [max(np.linalg.norm(x.astype(float)), 1e-12) for x in (first, second)]
    expected = float(first.astype(float) @ second) / lengths[0] / lengths[1]
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-30)
    assert all(np.isfinite(slope).all() for slope in gradient)


@pytest.mark.parametrize("negatives", ["position", "image", "batch"])
def test_info_nce_contrasts_each_query_with_its_keys(negatives: str) -> None:
    batch, tokens, temperature = 3, 4, 0.1
    queries, keys = normal(batch, tokens, 5), normal(batch, tokens, 5)
    cosines, positive = similarities(unit(queries), unit(keys), negatives)
    count = {"position": batch, "image": tokens, "batch": batch * tokens}[negatives]
    assert cosines.shape == (batch, tokens, count)
    found = info_nce(cosines, positive, temperature)
    for b in range(batch):
        for t in range(tokens):
            seen = {
                "position": [(j, t) for j in range(batch)],
                "image": [(b, u) for u in range(tokens)],
                "batch": [(j, u) for j in range(batch) for u in range(tokens)],
            }[negatives]
            logits = [float(cosine(queries[b, t], keys[j, u])) / temperature for j, u in seen]
            own = logits[seen.index((b, t))]
            assert found[b, t] == pytest.approx(logsumexp(logits) - own, rel=1e-4, abs=1e-5)


def test_info_nce_of_equal_keys_is_the_log_of_their_number() -> None:
    found = info_nce(jnp.full((2, 3, 7), 0.3), jnp.zeros((2, 3), jnp.int32), 0.2)
    np.testing.assert_allclose(found, math.log(7), rtol=1e-6)


def test_info_nce_does_not_overflow_at_a_low_temperature() -> None:
    cosines = jnp.array([[[1.0, -1.0]]])
    found = info_nce(cosines, jnp.array([[1]]), 1e-3)
    np.testing.assert_allclose(found, 2000, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    logits, labels = normal(5, 4) * 3, np.array([0, 3, 1, 1, 2], np.int32)
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    for b in range(5):
        target = [smoothing / 4 + (1 - smoothing) * (c == labels[b]) for c in range(4)]
        log_probability = logits[b].astype(float) - logsumexp(logits[b].astype(float))
        expected = -sum(t * p for t, p in zip(target, log_probability, strict=True))
        assert found[b] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_smooth_l1_is_squared_below_beta_and_absolute_above(beta: float) -> None:
    first, second = 2 * normal(40), normal(40)
    distance = np.abs(first.astype(float) - second)
    assert distance.min() < beta < distance.max()
    expected = [d**2 / (2 * beta) if d < beta else d - beta / 2 for d in distance]
    found = smooth_l1(jnp.asarray(first), jnp.asarray(second), beta)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
