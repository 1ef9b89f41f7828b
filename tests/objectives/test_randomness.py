"""What a reused key would show in: masks and jitters that should differ and do not."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from occinv import schema
from occinv.models import vit
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.rng import image_rngs

PATCH, SIDE = 4, 4
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def make(name: str, **fields: Any) -> Objective:
    encoder = schema.Encoder(name="micro", patch_size=PATCH)
    setting = Setting(vit.make_vit(encoder, SIDE * PATCH), num_classes=3, total_steps=100)
    return make_objective({"name": name, **fields}, setting)


MANY = 64


def many_views(objective: Objective, pixels: Any = None, step: int = 0) -> Any:
    def draw(pixels: Any) -> Any:
        return objective.transform(pixels, image_rngs(jax.random.key(7), jnp.int32(step), MANY))

    if pixels is None:
        pixels = jnp.zeros((MANY, SIDE * PATCH, SIDE * PATCH, 3))
    return jax.jit(draw)(pixels)


@pytest.mark.parametrize("name", ["mae", "rmae", "cmae"])
def test_every_image_of_every_step_has_a_mask_of_its_own(name: str) -> None:
    objective = make(name)
    masks = [np.asarray(many_views(objective, step=step)[0].visible) for step in (0, 1)]
    # 1820 masks are possible: 64 draws repeat one now and then, not often.
    assert all(len({row.tobytes() for row in mask}) > MANY * 3 / 4 for mask in masks)
    assert (masks[0] != masks[1]).any(axis=1).mean() > 0.9
    # Each patch is as likely as the other.
    share = np.concatenate(masks).mean(0)
    assert np.abs(share - 0.25).max() < 0.15


def test_an_independent_t2_does_not_know_t1() -> None:
    first, second = many_views(make("rmae", t2="independent"))
    seen_again = np.asarray(second.visible)[np.asarray(first.visible)].mean()
    assert seen_again == pytest.approx(0.75, abs=0.1)


def test_each_view_of_each_image_has_a_jitter_of_its_own() -> None:
    brightness = {"brightness": 0.4, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    color = {**brightness, "probability": 1.0, "gray": 0.0}
    objective = make("cmae", color=color)
    views = many_views(objective, jnp.full((MANY, SIDE * PATCH, SIDE * PATCH, 3), 0.5))
    factors = []
    for view in views:
        red = np.asarray(view.pixels)[..., 0] * DEVIATION[0] + MEAN[0]
        grid = np.asarray(view.visible).reshape(MANY, SIDE, SIDE)
        seen = grid.repeat(PATCH, 1).repeat(PATCH, 2)
        values = [red[b][seen[b]] for b in range(MANY)]
        assert all(np.ptp(v) < 1e-6 for v in values)  # one factor an image
        factors.append(np.array([v[0] for v in values]) / 0.5)
    for factor in factors:
        assert 0.6 <= factor.min() < 0.7 and 1.3 < factor.max() <= 1.4
        assert len(np.unique(factor.round(6))) > MANY * 3 / 4
    assert abs(np.corrcoef(factors)[0, 1]) < 0.4


def test_the_jitter_of_a_half_knows_nothing_of_the_other_half() -> None:
    """Contrast and hue are of what T1 shows: color statistics of the rest would leak."""
    objective = make("cmae", color={"probability": 1.0, "gray": 0.0})
    rng = np.random.default_rng(0)
    pixels = rng.random((MANY, SIDE * PATCH, SIDE * PATCH, 3)).astype(np.float32)
    visible = np.asarray(many_views(objective, pixels)[0].visible)
    grid = visible.reshape(MANY, SIDE, SIDE).repeat(PATCH, 1).repeat(PATCH, 2)[..., None]
    repainted = np.where(grid, pixels, 1 - pixels)
    before, after = (np.asarray(many_views(objective, p)[0].pixels) for p in (pixels, repainted))
    np.testing.assert_array_equal(np.where(grid, before, 0), np.where(grid, after, 0))
    assert not np.allclose(before * DEVIATION + np.asarray(MEAN), pixels, atol=0.05)


def test_the_target_of_cmae_starts_as_the_online_branch() -> None:
    objective = make("cmae", head_hidden=8, head_out=8)
    params, state = jax.jit(objective.init)(jax.random.key(0))
    online = {name: params[name] for name in ("encoder", "projector")}
    jax.tree.map(np.testing.assert_array_equal, state["target"], online)
    weights = [params[name]["in"]["kernel"].ravel()[:16] for name in ("projector", "predictor")]
    assert (weights[0] != weights[1]).any()  # each part starts from a key of its own
