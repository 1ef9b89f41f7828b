"""CKA, retrieval and cosine against loops in float64, and properties that they must have."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_models import (
    DECODER,
    DEPTH,
    N,
    at_most_by_chance,
    encode,
    encoder_of,
    images,
    padded,
    rows,
)
from song import linear_gram, song

from occinv.data.batch import Batch
from occinv.evaluators.invariance import (
    FEATURES,
    Curves,
    blind,
    compare,
    invariance_curves,
    plain,
    untrained,
)
from occinv.evaluators.occlusion import draw_visible
from occinv.models.vit import ViT
from occinv.parallel import make_mesh
from occinv.schema import UserError

MAE = {"name": "mae", **DECODER}
CMAE = {"name": "cmae", "head_hidden": 8, "head_out": 8}
RATIOS = (0.25, 0.75)
B = 16
MEASURED = {"cka": FEATURES, "retrieval": FEATURES[:3], "cosine": FEATURES[:3]}

Tokens = list[dict[int, np.ndarray]]  # the visible patch tokens of each image by position


# The formulas in float64.


def dot(first: dict[int, np.ndarray], second: dict[int, np.ndarray]) -> float:
    """The product of two images' tokens over the positions that both have."""
    return sum(float(first[p] @ second[p]) for p in first if p in second)


def gram_of_tokens(tokens: Tokens) -> np.ndarray:
    return np.array([[dot(x, y) for y in tokens] for x in tokens])


def centered_gram_of_tokens(tokens: Tokens) -> np.ndarray:
    """The sum over positions of U-centered Gram matrices of the images that have a token there."""
    total = np.zeros((len(tokens), len(tokens)))
    for position in range(N):
        having = [i for i, image in enumerate(tokens) if position in image]
        n = len(having)
        if n < 4:
            continue
        k = linear_gram(np.array([tokens[i][position] for i in having]))
        np.fill_diagonal(k, 0)
        for a, i in enumerate(having):
            for b, j in enumerate(having):
                if a != b:
                    total[i, j] += (
                        k[a, b]
                        - k[a].sum() / (n - 2)
                        - k[b].sum() / (n - 2)
                        + k.sum() / ((n - 1) * (n - 2))
                    )
    return total


def retrieval_and_cosine(cosines: np.ndarray) -> tuple[float, float]:
    n = len(cosines)
    found, same, other = 0, [], []
    for i in range(n):
        others = [cosines[i, j] for j in range(n) if j != i]
        found += cosines[i, i] > max(others)
        same.append(cosines[i, i])
        other += others
    average = np.mean(other)
    return found / n, float((np.mean(same) - average) / (1 - average))


def cosine_of_vectors(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    y, x = (v.astype(np.float64) for v in (y, x))
    return np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in x] for a in y])


def cosine_of_tokens(occluded: Tokens, full: np.ndarray) -> np.ndarray:
    """Of the visible tokens of an image and any full image's tokens at the same positions."""
    found = np.zeros((len(occluded), len(occluded)))
    for i, own in enumerate(occluded):
        y = np.concatenate(list(own.values()))
        for j, of_full in enumerate(full):
            x = np.concatenate([of_full[position] for position in own])
            found[i, j] = y @ x / np.linalg.norm(y) / np.linalg.norm(x)
    return found


def reference(
    encoder: ViT, params: Any, batches: Iterable[Batch], ratio: float, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Every measure and feature at one ratio: float64 [depth] each."""
    sums = {name: np.zeros((3, DEPTH)) for name in FEATURES}
    others: dict[str, dict[str, np.ndarray]] = {
        measure: {name: np.zeros(DEPTH) for name in FEATURES[:3]}
        for measure in ("retrieval", "cosine")
    }
    images = 0
    for batch in batches:
        (visible,), (kept,) = draw_visible(jax.random.key(seed), batch.index, N, (ratio,))
        pixels = jnp.asarray(batch.image / np.float32(255))
        blocks = (encode(encoder, params, pixels), encode(encoder, params, pixels, visible, kept))
        full, occluded = (np.asarray(x.blocks, np.float64) for x in blocks)
        real = np.flatnonzero(batch.weight)
        seen = [np.flatnonzero(np.asarray(visible)[i]) for i in real]
        images += len(real)
        for block in range(DEPTH):
            x, y = full[block, real], occluded[block, real]
            shown: Tokens = []
            hidden: Tokens = []
            for i, places in enumerate(seen):
                own = y[i, 1:][places] if encoder.mask_token else y[i, 1:]
                assert len(own) == len(places) == kept
                hidden.append(dict(zip(places.tolist(), own, strict=True)))
                shown.append({p: x[i, 1 + p] for p in places.tolist()})
            grams = {
                "class": (linear_gram(x[:, 0]), linear_gram(y[:, 0])),
                "mean": (linear_gram(x[:, 1:].mean(1)), linear_gram(y[:, 1:].mean(1))),
                "tokens": (centered_gram_of_tokens(shown), centered_gram_of_tokens(hidden)),
                "uncentered_tokens": (gram_of_tokens(shown), gram_of_tokens(hidden)),
            }
            for name, (k, l) in grams.items():  # noqa: E741
                sums[name][:, block] += len(real) * np.array([song(k, l), song(k, k), song(l, l)])
            cosines = {
                "class": cosine_of_vectors(y[:, 0], x[:, 0]),
                "mean": cosine_of_vectors(y[:, 1:].mean(1), x[:, 1:].mean(1)),
                "tokens": cosine_of_tokens(hidden, x[:, 1:]),
            }
            for name, matrix in cosines.items():
                found = retrieval_and_cosine(matrix)
                others["retrieval"][name][block] += len(real) * found[0]
                others["cosine"][name][block] += len(real) * found[1]
    result = {"cka": {name: s[0] / np.sqrt(s[1] * s[2]) for name, s in sums.items()}}
    for measure, of_feature in others.items():
        result[measure] = {name: value / images for name, value in of_feature.items()}
    return result


# The curves of an encoder.


def plain_of(section: dict[str, Any], removed: Any = "drop") -> tuple[ViT, dict[str, Any]]:
    encoder, params = encoder_of(section)
    return plain(encoder, removed), params


def filled(batch: Batch, first: int = 0) -> Batch:
    """The batch padded to B rows and rolled, to start with row `first`: one shape for all."""
    return rows(padded(batch, B - len(batch.label)), np.roll(np.arange(B), first))


def all_values(curves: Curves) -> np.ndarray:
    return np.concatenate(
        [getattr(curves, m)[name].ravel() for m, names in MEASURED.items() for name in names]
    )


@pytest.mark.parametrize(
    ("section", "removed", "ratios"),
    [(MAE, "drop", RATIOS), (CMAE, "drop", (0.5,)), (CMAE, "mask_token", (0.5,))],
)
def test_curves_are_the_formulas_on_features_of_the_encoder(
    section: dict[str, Any], removed: str, ratios: tuple[float, ...]
) -> None:
    encoder, params = plain_of(section, removed)
    assert encoder.mask_token == (removed == "mask_token") and not encoder.final_norm
    batches = [images(B), filled(images(13, first=B), 5)]
    curves = invariance_curves(encoder, params, batches, ratios, seed=5)
    assert (curves.ratios, curves.blocks, curves.images) == (ratios, (1, 2), B + 13)
    assert curves.chance == pytest.approx(2 / (B + 13))
    if not encoder.mask_token:  # the module itself would look for the values of its parameters
        params = {name: value for name, value in params.items() if name != "mask_token"}
    for place, ratio in enumerate(ratios):
        expected = reference(encoder, params, batches, ratio, seed=5)
        for measure, names in MEASURED.items():
            found = getattr(curves, measure)
            assert tuple(found) == names
            for name in names:
                np.testing.assert_allclose(
                    found[name][place], expected[measure][name], atol=1e-5, err_msg=(measure, name)
                )
    assert (abs(all_values(curves)) < 0.999).any()


def test_curves_do_not_depend_on_order_padding_devices_or_the_other_ratios() -> None:
    encoder, params = plain_of(MAE)
    batches = [images(B), filled(images(12, B))]
    expected = all_values(invariance_curves(encoder, params, batches, RATIOS))
    shuffled = np.random.default_rng(0).permutation(B)
    batches = [filled(images(12, B), 5), rows(images(B), shuffled)]
    for mesh in (None, make_mesh(jax.devices()[:1]), make_mesh(jax.devices()[:8])):
        found = invariance_curves(encoder, params, batches, RATIOS, mesh=mesh)
        np.testing.assert_allclose(all_values(found), expected, atol=2e-5)
        assert found.images == B + 12
    backwards = invariance_curves(encoder, params, batches, RATIOS[::-1])
    for measure, names in MEASURED.items():
        for name in names:
            first, second = (getattr(curves, measure)[name] for curves in (found, backwards))
            np.testing.assert_allclose(second[::-1], first, atol=2e-5)
    other = invariance_curves(encoder, params, batches, RATIOS, seed=1)
    assert abs(all_values(other) - expected).max() > 1e-3


def test_a_blind_encoder_is_alike_only_in_uncentered_tokens() -> None:
    """It sees which patches are visible, but nothing of the image."""
    encoder, params = plain_of(MAE)
    batches = [images(B, first) for first in range(0, 4 * B, B)]
    for start in (params, untrained(encoder, 0)):
        curves = invariance_curves(encoder, blind(start), batches, RATIOS)
        highest = at_most_by_chance(curves.chance, curves.images)
        for name in ("class", "mean", "tokens"):
            np.testing.assert_array_equal(curves.cka[name], 0)
            assert (curves.retrieval[name] <= highest).all()
            np.testing.assert_allclose(curves.cosine[name], 0, atol=1e-3)
        assert (curves.cka["uncentered_tokens"] > 0.7).all()


def test_features_that_do_not_vary_are_not_alike() -> None:
    """Neither with padding that differs from them, nor if they are zero."""
    encoder, params = plain_of(MAE)
    same = rows(images(1), np.zeros(12, int))
    batch = filled(dataclasses.replace(same, index=np.arange(12, dtype=np.int32)))
    curves = invariance_curves(encoder, params, [batch], RATIOS)
    for name in ("class", "mean", "tokens"):
        np.testing.assert_array_equal(curves.cka[name], 0)
        assert (curves.retrieval[name] <= at_most_by_chance(1 / 12, 12)).all()
        np.testing.assert_allclose(curves.cosine[name], 0, atol=1e-3)
    zeros = jax.tree.map(np.zeros_like, params)
    assert not all_values(invariance_curves(encoder, zeros, [images(B)], RATIOS)).any()


def test_an_encoder_whose_tokens_exchange_nothing_has_equal_tokens() -> None:
    encoder, params = plain_of(MAE)
    out = params["blocks"]["scan"]["attention"]["out"]
    params["blocks"]["scan"]["attention"]["out"] = jax.tree.map(np.zeros_like, out)
    curves = invariance_curves(encoder, params, [images(B)], RATIOS)
    for measure, name in (
        ("cka", "tokens"),
        ("cka", "uncentered_tokens"),
        ("retrieval", "tokens"),
        ("cosine", "tokens"),
    ):
        np.testing.assert_allclose(getattr(curves, measure)[name], 1, atol=1e-5)


def test_a_batch_of_fewer_than_four_images_is_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder, params = plain_of(MAE)
    expected = invariance_curves(encoder, params, [images(B)], RATIOS)
    with caplog.at_level(logging.WARNING, "occinv.evaluators"):
        found = invariance_curves(encoder, params, [images(B), filled(images(3, B))], RATIOS)
    np.testing.assert_array_equal(all_values(found), all_values(expected))
    assert (found.images, found.chance) == (B, 1 / B)
    assert "leaves out 3 images" in caplog.text
    with pytest.raises(UserError, match="found 3 images, but CKA needs a batch of at least 4"):
        invariance_curves(encoder, params, [filled(images(3))], RATIOS)


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


# The measures of given features.


def draw(seed: int, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens float32 [1, count, 1 + N, width] with a mean, and visible patches [count, N]."""
    generator = np.random.default_rng(seed)
    tokens = generator.normal(size=(1, count, 1 + N, width)) + generator.normal(size=(1 + N, width))
    return tokens.astype(np.float32), generator.random((count, N)) < 0.5


def likeness(
    full: np.ndarray, occluded: np.ndarray, visible: np.ndarray
) -> dict[tuple[str, str], float]:
    """Every measure of one batch by (measure, feature)."""
    found = compare(jnp.asarray(full), jnp.asarray(occluded), visible, jnp.ones(full.shape[1]))
    values = {("cka", n): x[0] / np.sqrt(x[1] * x[2]) for n, x in found.pop("hsic").items()}
    values |= {(m, n): x for m, of_feature in found.items() for n, x in of_feature.items()}
    return {key: float(value[0]) for key, value in values.items()}


def test_equal_features_are_1_in_all_measures() -> None:
    full, visible = draw(0, 24, 8)
    full[:, :, 1:] = full[:, :, 1:2]  # equal tokens, so that the mean of the visible ones is equal
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    for occluded in (full, 7 * full):
        for key, value in likeness(full, occluded, visible).items():
            assert value == pytest.approx(1, abs=1e-5), key
    for key, value in likeness(full, 7 * full @ rotation, visible).items():
        if key[0] == "cka":  # cosines compare the axes of the features, too
            assert value == pytest.approx(1, abs=1e-5), key


def test_a_rotation_and_a_scale_of_all_features_change_nothing() -> None:
    full, visible = draw(0, 24, 8)
    occluded = (full + 0.5 * draw(1, 24, 8)[0]).astype(np.float32)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0].astype(np.float32)
    before = likeness(full, occluded, visible)
    after = likeness(3 * full @ rotation, 7 * occluded @ rotation, visible)
    assert after == pytest.approx(before, abs=1e-5)
    assert 0.3 < before["cka", "class"] < 0.95


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_independent_features_are_about_0(share: float) -> None:
    """On average over batches, also with few images at each position."""
    count, batches = 24, 60
    found: dict[tuple[str, str], list[float]] = {}
    program = jax.jit(compare)
    sums: dict[str, np.ndarray] = {}
    for seed in range(batches):
        generator = np.random.default_rng(seed)
        full, occluded = generator.normal(size=(2, 1, count, 1 + N, 12)).astype(np.float32)
        visible = generator.random((count, N)) < share
        result = program(full, occluded, visible, jnp.ones(count))
        for name, values in result.pop("hsic").items():
            sums[name] = sums.get(name, 0) + np.asarray(values)[:, 0].astype(np.float64)
        for measure, of_feature in result.items():
            for name, value in of_feature.items():
                found.setdefault((measure, name), []).append(float(value[0]))
    for name in ("class", "mean", "tokens"):
        assert abs(sums[name][0] / np.sqrt(sums[name][1] * sums[name][2])) < 0.03, name
        highest = at_most_by_chance(1 / count, count * batches)
        assert np.mean(found["retrieval", name]) <= highest
        assert abs(np.mean(found["cosine", name])) < 0.02


def test_an_image_and_its_copy_are_not_told_apart() -> None:
    twice = rows(images(B // 2), np.repeat(np.arange(B // 2), 2))  # each image and its copy
    curves = invariance_curves(*plain_of(MAE), [twice], RATIOS)
    for name in ("class", "mean", "tokens"):
        np.testing.assert_array_equal(curves.retrieval[name], 0)
