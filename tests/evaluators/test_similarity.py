"""HSIC, centering and retrieval of given features, against formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from song import linear_gram, song

from occinv.evaluators.similarity import (
    cka,
    cosine_matrix,
    gram,
    hsic,
    relative_cosine,
    retrieved,
    u_centered,
    u_centered_tokens,
)

N = 16  # patches


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Related features, with a mean far larger than their variation."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(24, 10))
    y = x[:, :6] + 0.7 * generator.normal(size=(24, 6))
    return x + 30, y - 20


def hsic1(x: np.ndarray, y: np.ndarray, real: np.ndarray | None = None) -> float:
    """The library's HSIC₁ of features [n, F]."""
    real = np.ones(len(x), np.float32) if real is None else real
    first, second = (u_centered(gram(jnp.asarray(f, "float32")[None], real), real) for f in (x, y))
    return float(hsic(first, second, real)[0][0])


def song_of(x: np.ndarray, y: np.ndarray) -> float:
    return song(linear_gram(x), linear_gram(y))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Plain linear CKA of features [n, F] (Kornblith et al. 2019), which is biased upwards."""
    first, second = (f - f.mean(0) for f in (x.astype(np.float64), y.astype(np.float64)))
    norm = np.linalg.norm
    cross = norm(second.T @ first) ** 2
    return float(cross / (norm(first.T @ first) * norm(second.T @ second)))


def cka1(x: np.ndarray, y: np.ndarray, estimate: Callable[..., float] = hsic1) -> float:
    return estimate(x, y) / np.sqrt(estimate(x, x) * estimate(y, y))


def test_hsic_equals_song_term_by_term(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    assert hsic1(x, y) == pytest.approx(song_of(x, y), rel=1e-5)
    assert hsic1(x, x) == pytest.approx(song_of(x, x), rel=1e-5)


def test_hsic_ignores_padding(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (np.concatenate([f, np.full((5, f.shape[1]), 99.0)]) for f in pair)
    real = (np.arange(29) < 24).astype(np.float32)
    assert hsic1(x, y, real) == pytest.approx(song_of(*pair), rel=1e-5)


def test_hsic_of_unrelated_features_is_zero_on_average() -> None:
    """It is unbiased; plain CKA of the same features is far from 0."""
    x, y = np.random.default_rng(0).normal(size=(2, 300, 8, 20)).astype(np.float32)
    real = jnp.ones(8)
    first, second = (u_centered(gram(f, real), real) for f in (x, y))
    between, of_first, of_second = hsic(first, second, real)
    assert abs(np.mean(between / jnp.sqrt(of_first * of_second))) < 0.03
    assert np.mean([linear_cka(*pair) for pair in zip(x, y, strict=True)]) > 0.5


def test_cka_is_invariant_to_rotation_scale_and_shift(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))
    assert cka1(x, x @ rotation * 7 + 3) == pytest.approx(1, abs=1e-5)
    assert cka1(x @ rotation * 7 + 3, y) == pytest.approx(cka1(x, y), abs=1e-5)
    assert cka1(x, y) < 0.9


def test_tokens_are_centered_at_each_position() -> None:
    """A large vector for each position, equal in all images, changes nothing; nor does padding."""
    generator = np.random.default_rng(3)
    patches = generator.normal(size=(1, 24, N, 8)).astype(np.float32)
    visible = generator.random((24, N)) < 0.5
    shown = visible[None, :, :, None]
    position = 10 * generator.normal(size=(N, 8)).astype(np.float32)
    real = jnp.ones(24)
    found = u_centered_tokens(patches * shown, visible, real)
    moved = u_centered_tokens((patches + position) * shown, visible, real)
    np.testing.assert_allclose(moved, found, atol=1e-3 * abs(found).max())
    others = np.full((1, 8, N, 8), 50, np.float32)
    with_padding = u_centered_tokens(
        np.concatenate([patches * shown, others], 1),
        np.concatenate([visible, np.ones((8, N), bool)]),
        (jnp.arange(32) < 24).astype(jnp.float32),
    )
    np.testing.assert_allclose(with_padding[:, :24, :24], found, atol=1e-4 * abs(found).max())
    assert not np.asarray(with_padding[:, 24:]).any()
    few = np.zeros((24, N), bool)
    few[:3] = True  # three images at each position
    assert not np.asarray(u_centered_tokens(patches, few, real)).any()


def test_cosines_of_vectors_and_of_visible_tokens() -> None:
    generator = np.random.default_rng(0)
    y, x = generator.normal(size=(2, 1, 5, 6)).astype(np.float32)
    found = np.asarray(cosine_matrix(jnp.asarray(y), jnp.asarray(x), None))[0]
    tokens = generator.normal(size=(1, 5, N, 6)).astype(np.float32)
    visible = generator.random((5, N)) < 0.5
    occluded = generator.normal(size=(1, 5, N, 6)) * visible[None, :, :, None]
    flat = jnp.asarray(occluded.reshape(1, 5, -1), jnp.float32)
    of_tokens = np.asarray(cosine_matrix(flat, jnp.asarray(tokens), visible))[0]
    norm = np.linalg.norm
    for i in range(5):
        for j in range(5):
            a, b = y[0, i], x[0, j]
            assert found[i, j] == pytest.approx(a @ b / norm(a) / norm(b), abs=1e-5)
            a, b = occluded[0, i][visible[i]].ravel(), tokens[0, j][visible[i]].ravel()
            assert of_tokens[i, j] == pytest.approx(a @ b / norm(a) / norm(b), abs=1e-5)


def test_ties_and_nan_are_no_retrieval() -> None:
    real = jnp.ones(3)
    cosines = jnp.array([[[0.5, 0.5, 0.1], [0.2, 0.5, 0.1], [0.9, 0.1, 0.5]]])
    assert retrieved(cosines, real)[0] == pytest.approx(1 / 3)
    assert retrieved(jnp.full((1, 3, 3), jnp.nan), real)[0] == 0
    # A third image that is padding is neither found nor in the way.
    assert retrieved(cosines.at[0, 1, 2].set(0.9), jnp.array([1.0, 1, 0]))[0] == 0.5


def test_relative_cosine() -> None:
    real = jnp.array([1.0, 1, 0])
    cosines = jnp.array([[[0.8, 0.2, 9], [0.4, 0.6, 9], [9, 9, 9]]])
    assert relative_cosine(cosines, real)[0] == pytest.approx((0.7 - 0.3) / (1 - 0.3))
    assert relative_cosine(jnp.ones((1, 3, 3)), real)[0] == 0
    alike = jnp.full((1, 3, 3), 0.5).at[0, 0, 0].set(1).at[0, 1, 1].set(1)
    assert relative_cosine(alike, real)[0] == pytest.approx(1)


def test_cka_equals_songs_estimator(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    assert cka(x, y) == pytest.approx(cka1(x, y, song_of), rel=1e-4)
    assert cka(x, 3 * x[:, ::-1]) == pytest.approx(1, rel=1e-5)
    assert cka(x, np.ones_like(y)) == 0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.ones((5, 2, 3)), np.ones((5, 3)), r"\[5, 2, 3\] and \[5, 3\], expected \[B, F\]"),
        (np.ones((5, 2)), np.ones((6, 2)), "of 5 and 6 images, expected features of the same"),
        (np.ones((3, 2)), np.ones((3, 2)), "of 3 images, expected 4 or more"),
        (np.full((5, 2), np.nan), np.ones((5, 2)), "not finite"),
    ],
)
def test_cka_of_impossible_features_is_an_error(
    first: np.ndarray, second: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cka(first, second)
