"""AdamW, its groups and its schedule; tests/fidelity holds them to the official numbers."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import DictKey

from occinv import schema
from occinv.objectives.base import FROZEN, ParamGroup
from occinv.train.optimizer import layer_scales, learning_rate, make_optimizer
from occinv.train.update_rules import clipping, is_decayed


@pytest.fixture(autouse=True)
def optax_promotes() -> Any:
    """Optax's own arithmetic promotes types."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(("scale", "peak"), [("linear", 4e-3), ("sqrt", 2e-3), ("none", 1e-3)])
def test_the_peak_follows_the_batch_and_the_rate_a_half_cosine(scale: Any, peak: float) -> None:
    config = schema.Optimizer(base_lr=1e-3, min_lr=1e-5, scale=scale)
    rate = learning_rate(config, 1024, 10, 110)
    assert [float(rate(step)) for step in (0, 5, 10)] == pytest.approx([0, peak / 2, peak])
    for step in (35, 60, 110, 200):
        done = min(step - 10, 100) / 100
        expected = 1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * done)) / 2
        assert float(rate(step)) == pytest.approx(expected, rel=1e-4)


def test_no_warm_up_and_a_run_shorter_than_its_warm_up() -> None:
    assert float(learning_rate(schema.Optimizer(base_lr=1.0), 256, 0, 10)(0)) == 1.0
    short = learning_rate(schema.Optimizer(base_lr=1.0), 256, 10, 5)
    assert [float(short(step)) for step in (0, 5)] == pytest.approx([0, 0.5])


def test_wsd_is_constant_until_its_cooldown_and_does_not_know_the_length() -> None:
    config = schema.Optimizer(base_lr=1.0, min_lr=0.25, schedule="wsd")
    rate = learning_rate(config, 512, 2, 10, cooldown=4)
    expected = [0, 1, 2, 2, 2, 2, 2, 2 - 1.75 / 4, 2 - 3.5 / 4, 2 - 5.25 / 4, 0.25, 0.25]
    assert [float(rate(step)) for step in range(12)] == pytest.approx(expected)
    longer = learning_rate(config, 512, 2, 100, cooldown=4)
    assert [float(longer(step)) for step in range(6)] == [float(rate(step)) for step in range(6)]


@pytest.mark.parametrize(
    ("path", "with_tokens", "without"),
    [
        ("encoder patch_embed kernel", True, True),
        ("encoder blocks scan attention qkv kernel", True, True),
        ("encoder blocks scan attention qkv bias", False, False),
        ("encoder blocks scan norm1 scale", False, False),
        ("encoder norm bias", False, False),
        ("encoder blocks scan scale1 scale", False, False),
        ("encoder relative_position", True, True),
        ("encoder position", False, False),
        ("decoder position", False, False),
        ("encoder class_token", True, False),
        ("decoder mask_token", True, False),
    ],
)
def test_what_decays(path: str, with_tokens: bool, without: bool) -> None:
    keys = tuple(map(DictKey, path.split()))
    assert is_decayed(keys, schema.Optimizer(decay="tokens")) == with_tokens
    assert is_decayed(keys, schema.Optimizer(decay="kernels")) == without


def params() -> Any:
    """Depth 2, everything 1."""
    return {
        "encoder": {
            "patch_embed": {"kernel": jnp.ones((2, 3))},
            "blocks": {"scan": {"out": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}}},
            "norm": {"scale": jnp.ones(3)},
        },
        "head": {"linear": {"kernel": jnp.ones((3, 2))}},
    }


def test_layer_scales_fall_from_the_head_to_the_embedding() -> None:
    scales = layer_scales(params(), 0.5)
    encoder = scales["encoder"]
    assert scales["head"]["linear"]["kernel"] == 1 and encoder["norm"]["scale"] == 1
    np.testing.assert_allclose(encoder["blocks"]["scan"]["out"]["kernel"].ravel(), [0.25, 0.5])
    np.testing.assert_allclose(encoder["blocks"]["scan"]["out"]["bias"].ravel(), [0.25, 0.5])
    assert encoder["patch_embed"]["kernel"] == 0.125


def test_a_relative_position_learns_like_its_block_or_like_the_head() -> None:
    given = params()
    given["encoder"]["relative_position"] = jnp.ones((2, 5, 4))
    scales = layer_scales(given, 0.5)["encoder"]["relative_position"]
    assert scales.shape == (2, 1, 1) and scales.ravel().tolist() == [0.25, 0.5]
    given["encoder"]["relative_position"] = jnp.ones((1, 5, 4))
    assert layer_scales(given, 0.5)["encoder"]["relative_position"] == 1


def first_step(config: schema.Optimizer, gradient: Any) -> Any:
    start = params()
    optimizer = make_optimizer(config, lambda step: jnp.float32(0.1))
    updates, _ = optimizer.update(gradient, optimizer.init(start), start)
    return optax.apply_updates(start, updates)


def test_decay_is_decoupled_and_slows_down_with_its_layer() -> None:
    """Without a gradient only decay moves a weight: by rate · decay · scale of the layer."""
    zero = jax.tree.map(jnp.zeros_like, params())
    after = first_step(schema.Optimizer(weight_decay=0.2, layer_decay=0.5), zero)
    out = after["encoder"]["blocks"]["scan"]["out"]
    np.testing.assert_allclose(out["kernel"][:, 0, 0], [1 - 0.02 / 4, 1 - 0.02 / 2], rtol=1e-6)
    np.testing.assert_allclose(after["head"]["linear"]["kernel"], 0.98, rtol=1e-6)
    np.testing.assert_array_equal(out["bias"], 1)


def test_adam_ignores_the_size_of_the_gradient() -> None:
    gradient = jax.tree.map(lambda x: 7 * x, params())
    after = first_step(schema.Optimizer(weight_decay=0.0), gradient)
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 0.9, rtol=1e-5), after)


def test_clipping_shrinks_a_long_gradient_only() -> None:
    start = {"encoder": {"kernel": jnp.zeros(2)}}
    moments = []
    for length in (0.5, 50.0):
        optimizer = make_optimizer(schema.Optimizer(clip_norm=1.0), lambda step: jnp.float32(1))
        gradient = {"encoder": {"kernel": jnp.array([length, 0.0])}}
        _, state = optimizer.update(gradient, optimizer.init(start), start)
        moments.append(float(optax.tree.get(state, "mu")["encoder"]["kernel"][0]))
    assert moments == pytest.approx([0.1 * 0.5, 0.1 * 1.0])


def clip(config: schema.Optimizer, gradient: Any) -> Any:
    rule = clipping(config)
    return jax.jit(rule.update)(gradient, rule.init(params()), params())[0]


def test_each_parameter_of_each_block_is_clipped_by_itself() -> None:
    config = schema.Optimizer(clip_norm=1.0, clip_by="parameter")
    gradient = jax.tree.map(lambda x: 0.1 * x, params())
    out = gradient["encoder"]["blocks"]["scan"]["out"]
    out["kernel"] = out["kernel"].at[1].set(2.0)  # the second block's kernel has norm 6
    clipped = clip(config, gradient)
    expected = jax.tree.map(lambda x: x, gradient)
    expected["encoder"]["blocks"]["scan"]["out"] = {
        "kernel": out["kernel"].at[1].set(2.0 / 6),
        "bias": out["bias"],
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), clipped, expected)


def test_each_column_is_clipped_relative_to_its_weights() -> None:
    """Eq. (3) of Brock et al. 2021: a column of three ones has the norm √3."""
    gradient = jax.tree.map(lambda x: 0.01 * x, params())
    kernel = jnp.full((2, 3, 3), 0.01).at[1, :, 2].set(jnp.array([3.0, 0, 4]))
    gradient["encoder"]["blocks"]["scan"]["out"]["kernel"] = kernel
    clipped = clip(schema.Optimizer(clip_norm=0.1, clip_by="unit"), gradient)
    short = jnp.array([0.6, 0, 0.8]) * 0.1 * math.sqrt(3)
    gradient["encoder"]["blocks"]["scan"]["out"]["kernel"] = kernel.at[1, :, 2].set(short)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), clipped, gradient)


def test_parameters_learn_from_their_own_step_on_as_if_the_run_began_there() -> None:
    config = schema.Optimizer(weight_decay=0.1)
    late = {("encoder", "patch_embed"): FROZEN, ("head", "linear"): ParamGroup(start=3)}
    rates = jnp.array([0.1, 0.2, 0.3, 0.4, 0.5])
    optimizer = make_optimizer(config, lambda step: rates[step], 5, late)
    draw = np.random.default_rng(0)
    gradients = [
        jax.tree.map(lambda x: jnp.asarray(draw.normal(size=x.shape), jnp.float32), params())
        for _ in range(5)
    ]
    current, history = params(), []
    state = optimizer.init(current)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, current)
        current = optax.apply_updates(current, updates)
        history.append(current)
    np.testing.assert_array_equal(current["encoder"]["patch_embed"]["kernel"], 1)
    np.testing.assert_array_equal(history[2]["head"]["linear"]["kernel"], 1)
    # From step 3: the same as a fresh AdamW of these rates on the gradients from there.
    alone = {"head": params()["head"]}
    fresh = make_optimizer(config, lambda step: rates[step + 3], 5)
    state = fresh.init(alone)
    for gradient in gradients[3:]:
        updates, state = fresh.update({"head": gradient["head"]}, state, alone)
        alone = optax.apply_updates(alone, updates)
    np.testing.assert_allclose(
        current["head"]["linear"]["kernel"], alone["head"]["linear"]["kernel"], rtol=1e-6
    )


def test_a_factor_scales_the_rate_below_its_path() -> None:
    config = schema.Optimizer(name="lars", weight_decay=0.0, layer_decay=0.5)
    gradient = jax.tree.map(lambda x: 0.1 * x, params())
    late, factor = {("encoder", "norm"): FROZEN}, {("encoder", "blocks"): ParamGroup(3.0)}
    steps = []
    for groups in (late, {**late, **factor}):
        optimizer = make_optimizer(config, lambda step: jnp.float32(0.1), 1, groups)
        steps.append(optimizer.update(gradient, optimizer.init(params()), params())[0])
    plain, scaled = steps
    expected = jax.tree.map(lambda x: x, plain)
    blocks = expected["encoder"]["blocks"]
    expected["encoder"]["blocks"] = jax.tree.map(lambda x: 3 * x, blocks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), scaled, expected)
    assert not scaled["encoder"]["norm"]["scale"].any()
    assert (blocks["scan"]["out"]["kernel"] != 0).all()


def test_weight_decay_moves_along_a_cosine() -> None:
    config = schema.Optimizer(weight_decay=0.04, final_weight_decay=0.4)
    optimizer = make_optimizer(config, lambda step: jnp.float32(1.0), steps=4)
    zero = jax.tree.map(jnp.zeros_like, params())
    current, decays = params(), []
    state = optimizer.init(current)
    for _ in range(4):
        updates, state = optimizer.update(zero, state, current)
        decays.append(-float(updates["head"]["linear"]["kernel"][0, 0]))
    # cosine_scheduler of the official DINO's utils.py
    expected = [0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * step / 4)) for step in range(4)]
    np.testing.assert_allclose(decays, expected, rtol=1e-5)
