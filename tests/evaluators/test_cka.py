"""CKA against formulas in float64, and properties that it must have."""

from __future__ import annotations

import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_models import DECODER, DEPTH, N, encode, encoder_of, images, padded, rows

from occinv.data.batch import Batch
from occinv.evaluators import cka
from occinv.evaluators.cka import cka_curves, gram, hsic, u_centered
from occinv.evaluators.occlusion import draw_visible
from occinv.evaluators.run import Measured
from occinv.parallel import make_mesh
from occinv.schema import UserError

MAE = {"name": "mae", **DECODER}
CMAE = {"name": "cmae", "head_hidden": 8, "head_out": 8}
RATIOS = (0.25, 0.75)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Plain linear CKA of features [n, ...] (Kornblith et al. 2019, Eqs. 3 and 4), in float64.

    It is biased upwards where there are few images for the number of features.
    """

    def centered_gram(features: np.ndarray) -> np.ndarray:
        flat = np.asarray(features, np.float64).reshape(len(features), -1)
        flat = flat - flat.mean(0)
        return flat @ flat.T

    first, second = centered_gram(x), centered_gram(y)
    cross = (first * second).sum()
    return float(cross / np.sqrt((first * first).sum() * (second * second).sum()))


def song(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC_1 of Song et al., Eq. 5, term by term in float64."""
    n = len(x)
    k, l = (f.astype(np.float64) @ f.astype(np.float64).T for f in (x, y))  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    trace = np.trace(k @ l)
    totals = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (one @ k @ l @ one)
    return float((trace + totals - cross) / (n * (n - 3)))


def hsic1(x: np.ndarray, y: np.ndarray, real: np.ndarray | None = None) -> float:
    """The library's HSIC_1 of features [n, F]."""
    real = np.ones(len(x), np.float32) if real is None else real
    first, second = (u_centered(gram(jnp.asarray(f, "float32")[None], real), real) for f in (x, y))
    return float(hsic(first, second, real)[0][0])


def cka1(x: np.ndarray, y: np.ndarray, estimate: Callable[..., float] = hsic1) -> float:
    return estimate(x, y) / np.sqrt(estimate(x, x) * estimate(y, y))


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Related features, with a mean far larger than their variation."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(24, 10))
    y = x[:, :6] + 0.7 * generator.normal(size=(24, 6))
    return x + 30, y - 20


def test_hsic_equals_song_term_by_term(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = pair
    assert hsic1(x, y) == pytest.approx(song(x, y), rel=1e-5)
    assert hsic1(x, x) == pytest.approx(song(x, x), rel=1e-5)


def test_hsic_ignores_padding(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (np.concatenate([f, np.full((5, f.shape[1]), 99.0)]) for f in pair)
    real = (np.arange(29) < 24).astype(np.float32)
    assert hsic1(x, y, real) == pytest.approx(song(*pair), rel=1e-5)


def test_hsic_of_unrelated_features_is_zero_on_average() -> None:
    """It is unbiased; plain CKA of the same features is far from 0."""
    x, y = np.random.default_rng(0).normal(size=(2, 300, 8, 20)).astype(np.float32)
    real = jnp.ones(8)
    first, second = (u_centered(gram(f, real), real) for f in (x, y))
    between, of_first, of_second = hsic(first, second, real)
    assert abs(np.mean(between / jnp.sqrt(of_first * of_second))) < 0.03
    assert np.mean([linear_cka(*pair) for pair in zip(x, y, strict=True)]) > 0.5


@pytest.mark.parametrize("estimate", [cka1, linear_cka])
def test_cka_is_invariant_to_rotation_scale_and_shift(
    estimate: Callable[..., float], pair: tuple[np.ndarray, np.ndarray]
) -> None:
    x, y = pair
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))
    assert estimate(x, x @ rotation * 7 + 3) == pytest.approx(1, abs=1e-5)
    assert estimate(x @ rotation * 7 + 3, y) == pytest.approx(estimate(x, y), abs=1e-5)
    assert estimate(x, y) < 0.9
    assert estimate(x, x) == pytest.approx(1, abs=1e-6)


def test_linear_cka_is_the_published_ratio_of_norms(pair: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (f - f.mean(0) for f in pair)
    norm = np.linalg.norm
    expected = norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))
    assert linear_cka(*pair) == pytest.approx(expected, rel=1e-9)


def filled(batch: Batch, first: int = 0) -> Batch:
    """The batch padded to 8 rows and rolled, to start with row `first`: one shape for all."""
    return rows(padded(batch, 8 - len(batch.label)), np.roll(np.arange(8), first))


def features(section: dict, batch: Batch, ratio: float, tokens: str, mask_token: bool) -> tuple:
    """Features [depth, n, F] of the full and the occluded images that are not padding."""
    encoder, params = encoder_of(section)
    encoder = encoder.clone(mask_token=mask_token)
    if not mask_token:  # dropped patches need none; one program for all
        params = {name: value for name, value in params.items() if name != "mask_token"}
    (visible,), (kept,) = draw_visible(jax.random.key(5), batch.index, N, (ratio,))
    pixels = jnp.asarray(batch.image / np.float32(255))
    whole = np.asarray(encode(encoder, params, pixels).blocks)
    part = np.asarray(encode(encoder, params, pixels, visible, kept).blocks)
    real = np.flatnonzero(batch.weight)
    whole, part = whole[:, real, 1:], part[:, real, 1:]
    if tokens == "mean":
        return whole.mean(2), part.mean(2)
    seen = np.asarray(visible)[real]
    full = [[w[s].ravel() for w, s in zip(block, seen, strict=True)] for block in whole]
    if mask_token:
        part = [[p[s].ravel() for p, s in zip(block, seen, strict=True)] for block in part]
        return np.array(full), np.array(part)
    return np.array(full), part.reshape(DEPTH, len(real), -1)


def test_the_features_of_an_image_are_the_chosen_tokens() -> None:
    blocks = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    ids = jnp.array([[0, 2], [1, 3], [0, 1]])
    chosen = cka.features(blocks, ids, "visible")
    np.testing.assert_array_equal(chosen[1, 1], blocks[1, 1, [2, 4]].ravel())
    of_two = cka.features(blocks[:, :, :3], ids, "visible")  # the others are dropped
    np.testing.assert_array_equal(of_two[0, 2], blocks[0, 2, 1:3].ravel())
    np.testing.assert_array_equal(cka.features(blocks, ids, "class"), blocks[:, :, 0])
    mean = cka.features(blocks, ids, "mean")
    np.testing.assert_allclose(mean, blocks[:, :, 1:].mean(2), atol=1e-6)


@pytest.mark.parametrize(
    ("section", "tokens", "removed", "ratios"),
    [
        (MAE, "visible", "drop", RATIOS),
        (CMAE, "visible", "drop", RATIOS),
        (MAE, "mean", "drop", (0.75,)),
        (CMAE, "visible", "mask_token", (0.75,)),
    ],
)
def test_curves_are_the_published_estimate_on_features_of_the_encoder(
    section: dict, tokens: str, removed: str, ratios: tuple[float, ...]
) -> None:
    batches = [images(8), filled(images(5, first=8))]
    curves = cka_curves(
        *encoder_of(section), batches, ratios, tokens=tokens, removed=removed, seed=5
    )
    assert (curves.ratios, curves.blocks, curves.images) == (ratios, (1, 2), 13)
    for ratio, values in zip(ratios, curves.values, strict=True):
        sums = np.zeros((3, DEPTH))
        for batch in batches:
            pairs = zip(
                *features(section, batch, ratio, tokens, removed == "mask_token"), strict=True
            )
            for block, (x, y) in enumerate(pairs):
                sums[:, block] += len(x) * np.array([song(x, y), song(x, x), song(y, y)])
        np.testing.assert_allclose(values, sums[0] / np.sqrt(sums[1] * sums[2]), atol=2e-5)
    assert (curves.values < 0.999).all()


def test_an_encoder_that_cannot_see_the_other_patches_has_a_cka_of_1() -> None:
    """With attention switched off, visible tokens are alike in the full and the occluded image."""
    encoder, params = encoder_of(MAE)
    out = params["blocks"]["scan"]["attention"]["out"]
    params["blocks"]["scan"]["attention"]["out"] = jax.tree.map(np.zeros_like, out)
    curves = cka_curves(encoder, params, [images(8)], RATIOS)
    np.testing.assert_allclose(curves.values, 1, atol=1e-6)


def test_curves_do_not_depend_on_order_padding_or_devices() -> None:
    encoder, params = encoder_of(MAE)
    expected = cka_curves(encoder, params, [images(8), filled(images(4, 8))], RATIOS).values
    shuffled = np.random.default_rng(0).permutation(8)
    batches = [filled(images(4, 8), 5), rows(images(8), shuffled)]
    for mesh in (None, make_mesh()):
        found = cka_curves(encoder, params, batches, RATIOS, mesh=mesh)
        np.testing.assert_allclose(found.values, expected, atol=2e-5)
        assert found.images == 12
    other = cka_curves(encoder, params, batches, RATIOS, seed=1).values
    assert abs(other - expected).max() > 1e-4


def test_removed_patches_depend_on_the_image_and_the_ratio() -> None:
    key, index = jax.random.key(0), np.arange(40, dtype=np.int32)
    (more, first), kept = draw_visible(key, index, N, (0.5, 0.75))
    (again,), _ = draw_visible(key, index[::-1].copy(), N, (0.75,))
    np.testing.assert_array_equal(first, again[::-1])
    assert kept == [8, 4]
    assert (np.asarray(more).sum(1) == 8).all()
    assert (np.asarray(first).sum(1) == 4).all()
    assert len(np.unique(np.asarray(first), axis=0)) > 30
    nested = (np.asarray(more) | ~np.asarray(first)).all(1)  # shared noise would nest them all
    assert nested.mean() < 0.5


def test_a_batch_of_fewer_than_four_images_is_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder, params = encoder_of(MAE)
    expected = cka_curves(encoder, params, [images(8)], RATIOS)
    with caplog.at_level(logging.WARNING, "occinv.evaluators"):
        found = cka_curves(encoder, params, [images(8), filled(images(3, 8))], RATIOS)
    np.testing.assert_array_equal(found.values, expected.values)
    assert found.images == 8
    assert "leaves out 3 images" in caplog.text
    with pytest.raises(UserError, match="found 3 images, but CKA needs a batch of at least 4"):
        cka_curves(encoder, params, [filled(images(3))], RATIOS)


def test_features_that_do_not_vary_have_no_cka() -> None:
    encoder, params = encoder_of(MAE)
    same = rows(images(1), np.zeros(8, int))
    curves = cka_curves(encoder, jax.tree.map(np.zeros_like, params), [same], RATIOS)
    assert np.isnan(curves.values).all()
    content = Measured("runs/mae", "mae", 3, "digits", curves).as_json()
    assert content["values"] == [[None, None], [None, None]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": "visble"}, "tokens='visble'.*did you mean 'visible'"),
        ({"removed": "mask"}, "removed='mask'.*did you mean 'mask_token'"),
        ({"removed": "mask_token"}, "trained without a mask token"),
        ({"ratios": (0.5, 1.0)}, "mask ratio 1.0"),
        ({"ratios": ()}, "ratios is empty"),
    ],
)
def test_an_impossible_choice_is_an_error_before_any_image(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cka_curves(*encoder_of(MAE), iter([None]), **change)
