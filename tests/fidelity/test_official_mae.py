"""MAE against the official models_mae.py: forward, losses, gradients, four optimizer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import DictKey
from official import (
    agrees,
    at,
    group,
    layer_of,
    loss_and_features,
    objective_of,
    ours,
    path_of,
    paths,
    pixels_of,
    with_views,
)

from occinv import schema
from occinv.objectives import forward
from occinv.train.optimizer import make_optimizer
from occinv.train.update_rules import is_decayed
from occinv.transforms.masking import kept_patches, lowest
from occinv.transforms.view import View


@pytest.fixture(scope="module")
def mae(reference: Path) -> Any:
    return np.load(reference / "mae_pretrain.npz")


def mae_loss(file: Any, **fields: Any) -> Any:
    """Return a function (params, noise) -> loss, (latent, prediction, visible)."""
    fields = {"mask_ratio": float(file["removed"].mean()), **fields}
    objective = objective_of(file, {"name": "mae", **fields})
    count = objective.setting.encoder.num_patches
    kept = kept_patches(count, objective.mask_ratio)
    pixels = pixels_of(file["images"])

    def loss(params: Any, noise: jax.Array) -> Any:
        visible = lowest(noise, kept)
        views = View(pixels, visible, kept), View(pixels, ~visible, count - kept)
        given = with_views(objective, *views)
        value, (_, z) = loss_and_features(given, params, {}, len(pixels))
        predicted = objective.networks.bind({"params": params}).decode(z, views[0])
        return value, (z.tokens, predicted, visible)

    return loss


@pytest.fixture(scope="module")
def mae_gradient(mae: Any) -> Any:
    return jax.jit(jax.value_and_grad(mae_loss(mae), has_aux=True))


@pytest.fixture(scope="module")
def mae_outcome(mae: Any, mae_gradient: Any) -> Any:
    return jax.device_get(mae_gradient(ours(group(mae, "state")), mae["noise"][0]))


def test_our_parameters_are_the_official_ones(mae: Any) -> None:
    objective = objective_of(mae, {"name": "mae"})
    params, _ = jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(np.shape, ours(group(mae, "state")))


def test_visible_patches_are_the_official_ones(mae: Any, mae_outcome: Any) -> None:
    (_, (_, _, visible)), _ = mae_outcome
    np.testing.assert_array_equal(visible, mae["removed"] == 0)


def test_latent(mae: Any, mae_outcome: Any) -> None:
    (_, (tokens, _, visible)), _ = mae_outcome
    kept = tokens.shape[1] - 1
    # Theirs are in the order of the noise, ours in raster order.
    place = np.argsort(mae["ids_restore"], axis=1)[:, :kept]
    np.testing.assert_array_equal(np.sort(place), np.nonzero(visible)[1].reshape(-1, kept))
    theirs = np.take_along_axis(mae["latent"][:, 1:], np.argsort(place, axis=1)[..., None], axis=1)
    theirs = np.concatenate([mae["latent"][:, :1], theirs], axis=1)
    agrees("MAE: latent", tokens, theirs)


def test_prediction_and_loss(mae: Any, mae_outcome: Any) -> None:
    (loss, (_, predicted, _)), _ = mae_outcome
    agrees("MAE: prediction", predicted, mae["pred"])
    agrees("MAE: loss, normalized pixels, four mask ratios", loss, mae["loss"], 1e-5)


def test_every_gradient(mae: Any, mae_outcome: Any) -> None:
    _, gradient = mae_outcome
    expected = group(mae, "grad")
    agrees("MAE: every gradient", gradient, ours(expected))
    compared = {path_of(name, value.ndim) for name, value in expected.items()}
    # The official position embeddings need no gradient.
    assert {path[-1] for path in set(paths(gradient)) - compared} == {"position"}


def test_loss_at_other_mask_ratios(mae: Any) -> None:
    names = [name for name in mae.files if name.startswith("loss_ratio_")]
    assert names
    for name in names:
        loss = jax.jit(mae_loss(mae, mask_ratio=float(name.removeprefix("loss_ratio_"))))
        found, _ = loss(ours(group(mae, "state")), mae["noise"][0])
        agrees("MAE: loss, normalized pixels, four mask ratios", found, mae[name], 1e-5)


def test_loss_of_raw_pixels(mae: Any) -> None:
    loss = jax.jit(mae_loss(mae, normalize_target=False))
    found, _ = loss(ours(group(mae, "state")), mae["noise"][0])
    agrees("MAE: loss, raw pixels", found, mae["loss_raw_pixels"], 1e-5)


def test_four_steps_of_adamw(mae: Any, mae_gradient: Any) -> None:
    rates = jnp.asarray(mae["train_lrs"], jnp.float32)
    config = schema.Optimizer(betas=(0.9, 0.95), weight_decay=0.05)
    params = jax.tree.map(jnp.asarray, ours(group(mae, "state")))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
        optimizer = make_optimizer(config, lambda step: rates[step])
        state = optimizer.init(params)

        def update(gradient: Any, state: Any, params: Any) -> Any:
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        update = jax.jit(update)
        losses = []
        for noise in mae["noise"]:
            (loss, _), gradient = mae_gradient(params, noise)
            losses.append(float(loss))
            params, state = update(gradient, state, params)
    agrees("MAE: losses of four AdamW steps", np.array(losses), mae["train_losses"], 1e-5)
    trained = group(mae, "trained")
    assert trained
    # The gradient of the keys' bias is rounding noise, which Adam scales up to full steps.
    for name in [name for name in trained if name.endswith("attn.qkv.bias")]:
        path, layer = path_of(name, 1), layer_of(name)
        width = trained[name].shape[0] // 3
        value = at(params, path)[layer]
        keep = np.r_[0:width, 2 * width : 3 * width]
        agrees("MAE: weights after four AdamW steps", value[keep], trained[name][keep])
        del trained[name]
    agrees("MAE: weights after four AdamW steps", params, ours(trained))


def test_the_decayed_parameters_of_pretraining(mae: Any) -> None:
    official = set(mae["decayed_params"].tolist())
    config = schema.Optimizer()
    for name, value in group(mae, "state").items():
        path = tuple(DictKey(key) for key in path_of(name, value.ndim))
        assert is_decayed(path, config) == (name in official), name
