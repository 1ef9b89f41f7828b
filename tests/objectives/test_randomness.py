"""Tests that a reused PRNG key would fail: masks and jitters that must differ."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_objectives import (
    DECODER,
    HEADS,
    IMAGES,
    PATCH,
    SIDE,
    SIZE,
    make,
    make_batch,
    rngs_of,
    start,
)

from occinv.objectives import cae, cmae, forward
from occinv.objectives.base import Networks, Objective
from occinv.rng import fold, split
from occinv.transforms.color import ColorJitter
from occinv.transforms.mixing import mix

MANY = 64


def many_views(objective: Objective, pixels: Any = None, step: int = 0) -> Any:
    if pixels is None:
        pixels = jnp.zeros((MANY, SIZE, SIZE, 3))
    return jax.jit(lambda pixels: objective.views(pixels, rngs_of(step, MANY)))(pixels)


def in_pixels(visible: Any) -> np.ndarray:
    """Return bool [B, H, W] of visible patches [B, N]."""
    grid = np.asarray(visible).reshape(MANY, SIDE, SIDE)
    return grid.repeat(PATCH, 1).repeat(PATCH, 2)


@pytest.mark.parametrize("name", ["mae", "rmae", "cmae"])
def test_every_image_of_every_step_has_its_own_mask(name: str) -> None:
    objective = make(name)
    masks = [np.asarray(many_views(objective, step=step)[0].visible) for step in (0, 1)]
    # 1820 masks are possible, so 64 draws repeat only a few.
    assert all(len({row.tobytes() for row in mask}) > MANY * 3 / 4 for mask in masks)
    assert (masks[0] != masks[1]).any(axis=1).mean() > 0.9
    # Every patch is equally likely.
    share = np.concatenate(masks).mean(0)
    assert np.abs(share - 0.25).max() < 0.15


def test_an_independent_t2_does_not_depend_on_t1() -> None:
    first, second = many_views(make("rmae", t2="independent"))
    seen_again = np.asarray(second.visible)[np.asarray(first.visible)].mean()
    assert seen_again == pytest.approx(0.75, abs=0.1)


def test_each_view_of_each_image_has_its_own_jitter() -> None:
    brightness = {"brightness": 0.4, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    color = {**brightness, "probability": 1.0, "gray": 0.0}
    objective = make("cmae", color=color)
    views = many_views(objective, jnp.full((MANY, SIZE, SIZE, 3), 0.5))
    factors = []
    for view in views:
        red, seen = np.asarray(view.pixels)[..., 0], in_pixels(view.visible)
        values = [red[b][seen[b]] for b in range(MANY)]
        assert all(np.ptp(v) < 1e-6 for v in values)  # one factor for each image
        factors.append(np.array([v[0] for v in values]) / 0.5)
    for factor in factors:
        assert 0.6 <= factor.min() < 0.7 and 1.3 < factor.max() <= 1.4
        assert len(np.unique(factor.round(6))) > MANY * 3 / 4
    assert abs(np.corrcoef(factors)[0, 1]) < 0.4


def test_the_jitter_of_a_view_does_not_depend_on_the_patches_that_it_lacks() -> None:
    """Contrast uses a mean over the image, in which removed patches are black."""
    objective = make("cmae", color={"probability": 1.0, "gray": 0.0}, color_order="after")
    draw = np.random.default_rng(0)
    pixels = draw.random((MANY, SIZE, SIZE, 3)).astype(np.float32)
    grid = in_pixels(many_views(objective, pixels)[0].visible)[..., None]
    repainted = np.where(grid, pixels, 1 - pixels)
    before, after = (np.asarray(many_views(objective, p)[0].pixels) for p in (pixels, repainted))
    np.testing.assert_array_equal(np.where(grid, before, 0), np.where(grid, after, 0))
    assert not np.allclose(before, pixels, atol=0.05)


def test_the_target_of_cmae_starts_as_a_copy() -> None:
    objective = make("cmae", **HEADS)
    params, state = jax.jit(lambda: forward.init(objective, jax.random.key(0)))()
    online = {name: params[name] for name in ("encoder", "projector")}
    jax.tree.map(np.testing.assert_array_equal, state["target"], online)
    weights = [params[name]["in"]["kernel"].ravel()[:16] for name in ("projector", "predictor")]
    assert (weights[0] != weights[1]).any()  # each network has its own PRNG key


PROTOTYPES = {"num_prototypes": 6, "head_hidden": 12, "bottleneck": 8}
CROPS = {"local_crops": 1, "local_size": 8}
TOKENIZER = {"tokenizer": {"name": "kmeans", "num_ids": 5}, "min_rectangle": 2}


@pytest.mark.parametrize(
    ("name", "fields", "passes"),
    [
        ("mae", DECODER, 1),
        ("rmae", DECODER, 2),
        ("cmae", HEADS, 2),
        ("mocov3", HEADS, 2),
        ("dino", {**PROTOTYPES, **CROPS}, 3),
        ("ibot", {**PROTOTYPES, **CROPS, "min_rectangle": 2}, 3),
        ("msn", {"num_prototypes": 6, **HEADS, "focal_crops": 1, "focal_size": 8}, 2),
        ("cae", {**TOKENIZER, "regressor_depth": 1, "decoder_depth": 1}, 2),
        ("grid", {"similarity": "decoder_distance", **DECODER}, 2),
    ],
)
def test_views_and_forward_passes_have_their_own_rngs(
    monkeypatch: pytest.MonkeyPatch, name: str, fields: dict[str, Any], passes: int
) -> None:
    objective = make(name, **fields)
    kind, seen, of_passes = type(objective), [], []
    views, features, encode = kind.views, kind.features, Networks.encode

    def recorded_views(self: Any, pixels: Any, rng: jax.Array) -> Any:
        seen.append(rng)
        return views(self, pixels, rng)

    def recorded_features(self: Any, net: Any, views: Any, ctx: Any) -> Any:
        seen.append(ctx.rng)
        return features(self, net, views, ctx)

    def recorded_encode(self: Any, view: Any, rng: jax.Array | None = None) -> Any:
        if rng is not None:
            of_passes.append(rng)
        return encode(self, view)

    params, state = start(objective)
    monkeypatch.setattr(kind, "views", recorded_views)
    monkeypatch.setattr(kind, "features", recorded_features)
    monkeypatch.setattr(Networks, "encode", recorded_encode)

    def draw(params: Any, state: Any) -> Any:
        inputs = make_batch(objective), rngs_of(0), jnp.int32(0)
        forward.represent(objective, params, state, *inputs)
        return rngs_of(0), *seen, *of_passes

    keys = [np.asarray(jax.random.key_data(rng)) for rng in jax.jit(draw)(params, state)]
    assert len(keys) == 1 + 2 + passes
    assert len(np.unique(np.concatenate(keys), axis=0)) == len(keys) * IMAGES


def test_cutmix_and_jitter_of_cmae_share_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each splits its key in four, so none of those may be the other's key, either."""
    seen: list[jax.Array] = []

    def recorded_mix(rng: jax.Array, *args: Any, **options: Any) -> Any:
        seen.append(rng)
        return mix(rng, *args, **options)

    def recorded_jitter(self: ColorJitter, rng: jax.Array, pixels: jax.Array) -> jax.Array:
        seen.append(rng)
        return pixels

    monkeypatch.setattr(cmae, "mix", recorded_mix)
    monkeypatch.setattr(ColorJitter, "__call__", recorded_jitter)
    make("cmae", cutmix=1.0, **HEADS).views(jnp.zeros((1, SIZE, SIZE, 3)), rngs_of(0, 1))
    assert len(seen) == 4  # two views
    keys = [key for rng in seen for key in (rng, *split(rng, 4))]
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in keys}) == len(keys)


def test_every_pass_of_cae_folds_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []

    def recorded(rng: jax.Array, number: int) -> jax.Array:
        numbers.append(number)
        return fold(rng, number)

    monkeypatch.setattr(cae, "fold", recorded)
    objective = make("cae", **TOKENIZER, regressor_depth=1, decoder_depth=1)
    jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    assert len(numbers) == len(set(numbers)) == 3
