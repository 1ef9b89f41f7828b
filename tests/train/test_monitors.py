"""The monitors of training against NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_step import GOOD, assembled, make_batch, toy

from occinv import parallel, schema
from occinv.models.blocks import split_blocks
from occinv.models.class_attention import class_attention
from occinv.models.vit import make_vit
from occinv.objectives.base import Setting, make_objective
from occinv.schema import UserError
from occinv.train.monitors import (
    attention_entropy,
    feature_rank,
    gradient_noise,
    layer_norms,
)
from occinv.train.step import assemble, init_state, make_step


def test_each_layer_has_its_norm_stacked_or_split() -> None:
    draw = np.random.default_rng(0)
    out, bias = draw.normal(size=(2, 3, 4)), draw.normal(size=(2, 4))
    position, kernel = draw.normal(size=5), draw.normal(size=(4, 2))
    tree = {
        "encoder": {
            "blocks": {"scan": {"mlp": {"out": {"kernel": out, "bias": bias}}}},
            "position": position,
        },
        "head": {"linear": {"kernel": kernel, "bias": bias[0, :2]}},
    }
    tree = jax.tree.map(jnp.float32, tree)
    expected = {
        "g/encoder/blocks/0": np.sqrt((out[0] ** 2).sum() + (bias[0] ** 2).sum()),
        "g/encoder/blocks/1": np.sqrt((out[1] ** 2).sum() + (bias[1] ** 2).sum()),
        "g/encoder/position": np.linalg.norm(position),
        "g/head/linear": np.sqrt((kernel**2).sum() + (bias[0, :2] ** 2).sum()),
    }
    for form in (tree, split_blocks(tree)):
        found = layer_norms("g", form)
        assert found.keys() == expected.keys()
        assert [float(found[name]) for name in expected] == pytest.approx(list(expected.values()))


def test_the_noise_of_the_gradient_is_estimated_without_bias() -> None:
    """The expected squared norm of a gradient of b images is |G|² + tr Σ / b."""
    signal, noise = 3.0, 50.0
    part, whole = (jnp.float32(signal + noise / images) for images in (8, 32))
    found = gradient_noise(part, whole, 32, 4)
    assert float(found["gradient_signal"]) == pytest.approx(signal, rel=1e-5)
    assert float(found["gradient_noise"]) == pytest.approx(noise, rel=1e-5)


def test_a_step_measures_its_parts() -> None:
    """The gradient of Toy is the mean of its features, and part i has the images i and i + 2."""
    objective, optimizer = toy(), optax.sgd(0.1)
    state, batch = init_state(objective, optimizer, 0), make_batch(GOOD)
    step = jax.jit(make_step(objective, optimizer, 2, ("norms", "noise_scale")))
    plain = jax.jit(make_step(objective, optimizer, 2))
    after, metrics = step(state, batch)
    same, without = plain(state, batch)
    jax.tree.map(np.testing.assert_array_equal, after, same)
    more = {"gradient_norm/encoder/weight", "update_norm/encoder/weight"}
    assert metrics.keys() - without.keys() == more | {"gradient_signal", "gradient_noise"}
    norm = float(without["gradient_norm"])
    assert metrics["gradient_norm/encoder/weight"] == pytest.approx(norm)
    assert metrics["update_norm/encoder/weight"] == pytest.approx(0.1 * norm)
    slopes, alone = [], jax.jit(make_step(objective, optimizer))
    for images in ([0, 2], [1, 3]):
        part = dataclasses.replace(batch, weight=np.isin(np.arange(4), images).astype(np.float32))
        slopes.append(float(alone(state, part)[1]["gradient_norm"]))
    assert np.mean(slopes) == pytest.approx(norm)
    square = jnp.float32(np.mean(np.square(slopes)))
    expected = gradient_noise(square, jnp.float32(norm**2), 4, 2)
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-3), name


@pytest.mark.parametrize("objective", [{"name": "tiny_runs:Toy"}, {"name": "mocov3"}])
def test_the_noise_scale_needs_independent_parts(objective: dict[str, str]) -> None:
    parts = 2 if objective["name"] == "mocov3" else 1
    with pytest.raises(UserError, match=r"^train\.monitors=.*'noise_scale'.* set train\.accum"):
        assembled(objective, {"monitors": ("norms", "noise_scale"), "accumulate": parts})


def test_the_rank_of_features_is_the_entropy_of_their_singular_values() -> None:
    """RankMe of Garrido et al. 2023, by the eigenvalues of the Gram matrix."""
    encoder = make_vit(schema.Encoder(name="micro", patch_size=8, width=16, heads=2, depth=1), 16)
    mesh = parallel.make_mesh(jax.devices()[:1])
    objective = make_objective({"name": "mae"}, Setting(encoder, 2, 1, mesh=mesh))
    image = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    batch = dataclasses.replace(make_batch(GOOD), image=image)
    used = objective.networks.encoder
    pixels = image / np.float32(255)
    params = {"encoder": jax.jit(used.init)(jax.random.key(0), pixels)["params"]}
    token = objective.axes.token
    tokens = np.asarray(jax.jit(used.apply)({"params": params["encoder"]}, pixels).tokens)
    features = np.float64(tokens[:, 0] if token == "class" else tokens[:, 1:].mean(1))
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(features @ features.T), 0))
    share = singular / singular.sum()
    found = feature_rank(objective, params, batch, 2)
    expected = np.exp(-(share * np.log(share)).sum())
    assert found["feature_rank"] == pytest.approx(expected, rel=1e-3)
    assert 1 < expected < 4
    assert found["feature_variance"] == pytest.approx(features.var(0).mean(), rel=1e-4)


def test_the_entropy_of_attention_is_a_share_of_that_of_equal_attention() -> None:
    config = schema.Encoder(name="micro", patch_size=4, width=16, heads=2, depth=2, registers=1)
    mesh = parallel.make_mesh(jax.devices()[:1])
    objective = make_objective({"name": "mae"}, Setting(make_vit(config, 16), 2, 1, mesh=mesh))
    image = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    batch = dataclasses.replace(make_batch(GOOD), image=image)
    encoder, pixels = objective.networks.encoder, image / np.float32(255)
    params = jax.jit(encoder.init)(jax.random.key(0), pixels)["params"]
    # Attention that is far from equal in the first block, and equal in the second.
    qkv = params["blocks"]["scan"]["attention"]["qkv"]
    qkv["kernel"] = qkv["kernel"] * np.float32([4, 0])[:, None, None]
    weights = np.float64(class_attention(encoder, params, pixels))
    share = weights / weights.sum(-1, keepdims=True)
    share = np.maximum(share, 1e-30)
    expected = -(share * np.log(share)).sum(-1).mean((1, 2)) / np.log(16)
    assert 0.01 < expected[0] < 0.9
    for form in (params, split_blocks(params)):
        found = attention_entropy(objective, {"encoder": form}, batch, 2)
        assert list(found) == [f"attention_entropy/encoder/blocks/{i}" for i in range(2)]
        assert list(found.values()) == pytest.approx([expected[0], 1.0], rel=1e-4)


def test_the_entropy_of_attention_needs_a_class_token() -> None:
    config = {
        "objective": {"name": "mae"},
        "data": {"source": "digits", "image_size": 16},
        "encoder": {"name": "micro", "patch_size": 8, "class_token": False},
        "train": {"batch_size": 8, "monitors": ("attention",)},
    }
    with pytest.raises(UserError, match="attention is that of the class token"):
        assemble(schema.resolve(config), parallel.make_mesh(jax.devices()[:1]), 3, 2560)
