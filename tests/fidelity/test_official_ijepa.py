"""I-JEPA's predictor, loss and schedules against the official code."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from official import agrees, differentiated, fitting, group, heads_for, inputs, ours

from occinv import schema
from occinv.models import vit
from occinv.models.position import sincos
from occinv.objectives.base import Context, Setting, make_objective
from occinv.objectives.ijepa import ContextView
from occinv.train.optimizer import learning_rate, make_optimizer
from occinv.transforms.view import whole


@pytest.fixture(scope="module")
def ijepa(reference: Path) -> Any:
    return np.load(reference / "ijepa.npz")


def predictor_weights(weights: dict[str, np.ndarray]) -> Any:
    """Return official parameters (or gradients) of the predictor as our nested dict."""
    names = {name: name.removeprefix("p.") for name in weights if "pos_embed" not in name}
    renamed = {"mask_token": "predictor.mask_token"}
    return ours({renamed.get(short, short): weights[name] for name, short in names.items()})


def ijepa_objective(file: Any, heads: int) -> Any:
    """Return the objective with the file's sizes; its encoder is not used."""
    side, width = math.isqrt(file["full"].shape[1]), file["full"].shape[2]
    params = predictor_weights(group(file, "W"))["predictor"]
    encoder = schema.Encoder(name="micro", patch_size=1, width=width, depth=1, heads=1)
    section = {
        "name": "ijepa",
        "num_targets": file["blk"].shape[1],
        "target_scale": 1 / side**2,
        "predictor_width": len(params["mask_token"]),
        "predictor_depth": len(params["blocks"]["scan"]["norm1"]["scale"]),
        "predictor_heads": heads,
    }
    return make_objective(section, Setting(vit.make_vit(encoder, side), 0, total_steps=1))


@pytest.fixture(scope="module")
def ijepa_outcome(ijepa: Any) -> Any:
    """The loss, and its gradients with respect to the predictor and the context tokens."""
    images, count, _ = ijepa["full"].shape
    shown, targets = ijepa["ctx"], jnp.asarray(ijepa["blk"])
    visible = np.zeros((images, count), bool)
    np.put_along_axis(visible, shown, True, axis=1)
    black = jnp.zeros((images, 1, 1, 3))
    context = ContextView(black, jnp.asarray(visible), shown.shape[1], targets=targets)
    views = context, whole(black, count)
    batch, rng, step = inputs(images)

    def encoder_of(tokens: Any) -> Any:
        """Return an encoder of given patch tokens; the official one has no class token."""
        features = vit.Features(jnp.pad(tokens, ((0, 0), (1, 0), (0, 0))), tokens)
        return lambda view, rng=None: features

    target = SimpleNamespace(encode=encoder_of(ijepa["full"]))
    ctx = Context(rng, step, batch.label, batch.weight, {}, target)

    def compute(heads: int) -> Any:
        objective = ijepa_objective(ijepa, heads)

        def loss(given: Any) -> Any:
            params, tokens = given
            predictor = objective.networks.bind({"params": params}).predictor
            net = SimpleNamespace(encode=encoder_of(tokens), predictor=predictor)
            z = objective.features(net, views, ctx)
            return objective.loss(net, z, views, ctx).loss.mean(), ()

        return differentiated(loss, (predictor_weights(group(ijepa, "W")), ijepa["tok"]))

    width = ijepa["W/p.mask_token"].shape[-1]
    return fitting(compute, heads_for(width), ijepa["loss"])


def test_ijepa_loss(ijepa: Any, ijepa_outcome: Any) -> None:
    (loss, _), _ = ijepa_outcome
    assert (np.diff(ijepa["ctx"], axis=1) > 0).all()  # in raster order, as ours
    agrees("I-JEPA: loss", loss, ijepa["loss"], 1e-5)


def test_every_ijepa_gradient(ijepa: Any, ijepa_outcome: Any) -> None:
    _, (of_predictor, of_tokens) = ijepa_outcome
    expected = predictor_weights(group(ijepa, "G"))
    agrees("I-JEPA: every gradient of the predictor", of_predictor, expected)
    agrees("I-JEPA: gradient of the context tokens", of_tokens, ijepa["gtok"])


def test_position_embedding_of_the_predictor(ijepa: Any) -> None:
    official = ijepa["W/p.predictor_pos_embed"][0]
    count, width = official.shape
    found = sincos(math.isqrt(count), width)[1:]
    agrees("I-JEPA: position embedding", found, official, 1e-5)


def test_ijepas_learning_rate(ijepa: Any) -> None:
    official = ijepa["lr"]  # value i is that of step i + 1; the last is the smallest
    steps, warmup = len(official), int(official.argmax()) + 1
    config = schema.Optimizer(base_lr=float(official.max()), min_lr=float(official[-1]))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        found = jax.vmap(learning_rate(config, 256, warmup, steps))(jnp.arange(1, steps + 1))
    # The official warm-up starts above 0, ours at 0.
    after = slice(warmup - 1, None)
    agrees("I-JEPA: learning rate after the warm-up", found[after], official[after])


def test_ijepas_weight_decay(ijepa: Any) -> None:
    official = ijepa["wd"]  # value i is that of step i + 1
    steps, end = len(official), float(official[-1])
    # The file has no value of step 0; it follows from that of step 1.
    begin = end + (float(official[0]) - end) * 2 / (1 + math.cos(math.pi / steps))
    config = schema.Optimizer(weight_decay=begin, final_weight_decay=end)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        optimizer = make_optimizer(config, lambda step: jnp.float32(1), steps)
        params, zero = {"kernel": jnp.ones(())}, {"kernel": jnp.zeros(())}

        def decay(state: Any, _: Any) -> Any:
            updates, state = optimizer.update(zero, state, params)
            return state, -updates["kernel"]

        scan = jax.jit(lambda: jax.lax.scan(decay, optimizer.init(params), length=steps + 1)[1])
        found = scan()
    agrees("I-JEPA: weight decay", found[1:], official)
