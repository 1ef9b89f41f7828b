"""What the official PyTorch code computes from the same weights, images and noise.

The arrays are read from the folder of the fixture `reference`; every size comes from the files.
Weights have the official names and PyTorch's layouts; `ours` is the mapping to our tree.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import DictKey

from occinv import schema
from occinv.encoder import vit
from occinv.encoder.position import interpolate, sincos
from occinv.measure.losses import cross_entropy
from occinv.objective.base import Setting, build
from occinv.train.optimizer import is_decayed, layer_scales, learning_rate, make_optimizer
from occinv.transform.masking import kept_patches, lowest
from occinv.transform.view import View, whole

FAST_COMPILE = {"xla_backend_optimization_level": 0}  # compiling is most of the time of these tests
PLACES = {  # regular expressions of official names -> our path
    r"cls_token": "encoder class_token",
    r"pos_embed": "encoder position",
    r"patch_embed\.proj": "encoder patch_embed",
    r"norm": "encoder norm",
    r"mask_token": "decoder mask_token",
    r"decoder_pos_embed": "decoder position",
    r"decoder_embed": "decoder embed",
    r"decoder_norm": "decoder norm",
    r"decoder_pred": "decoder predict",
    r"fc_norm": "head norm",
    r"head": "head linear",
    r"blocks\.\d+\.(.*)": r"encoder blocks scan \1",
    r"decoder_blocks\.\d+\.(.*)": r"decoder blocks scan \1",
}
INSIDE_A_BLOCK = {
    "attn.qkv": "attention qkv",
    "attn.proj": "attention out",
    "mlp.fc1": "mlp in",
    "mlp.fc2": "mlp out",
}


def path_of(name: str, dimensions: int) -> tuple[str, ...]:
    """Where in our tree the official parameter `name` of so many dimensions is."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, kind = name, ""
    leaf = {"weight": "scale" if dimensions == 1 else "kernel"}.get(kind, kind)
    for pattern, place in PLACES.items():
        if match := re.fullmatch(pattern, stem):
            found = match.expand(place)
            for theirs, mine in INSIDE_A_BLOCK.items():
                found = found.replace(theirs, mine)
            return tuple(found.split()) + ((leaf,) if leaf else ())
    raise KeyError(name)


def layer_of(name: str) -> int | None:
    """Which block a parameter belongs to; ours are stacked along the first axis."""
    match = re.search(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


def converted(value: np.ndarray) -> np.ndarray:
    """An official array in our layout."""
    if value.ndim == 4:  # a convolution [out, in, h, w] over a patch that is (h, w, in) for us
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    if value.ndim == 3:  # tokens [1, 1, D] and position embeddings [1, 1 + N, D]
        return value[0, 0] if value.shape[1] == 1 else value[0]
    return value.T


def group(file: Any, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of a file whose name starts with `prefix`/, without it."""
    start = prefix + "/"
    return {k.removeprefix(start): file[k] for k in file.files if k.startswith(start)}


def ours(weights: dict[str, np.ndarray]) -> Any:
    """Official parameters by name as our nested dict."""
    layers: dict[tuple[str, ...], list[np.ndarray]] = {}
    for name in sorted(weights, key=lambda name: (layer_of(name) or 0, name)):
        path = path_of(name, weights[name].ndim)
        layers.setdefault(path, []).append(converted(weights[name]))
    tree: dict[str, Any] = {}
    for path, values in layers.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.stack(values) if "blocks" in path else values[0]
    return tree


def at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def assert_tree_close(tree: Any, weights: dict[str, np.ndarray], rtol: float, atol: float) -> None:
    for path, expected in jax.tree_util.tree_leaves_with_path(ours(weights)):
        found = at(tree, tuple(key.key for key in path))
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, err_msg=name)


def objective_of(file: Any, section: dict[str, Any], num_classes: int = 0) -> Any:
    """The objective whose encoder has the sizes that the file was computed with."""
    config = json.loads(str(file["config"]))
    encoder = schema.Encoder(
        name="micro",
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
    )
    if section["name"] == "mae":
        section = section | {
            "decoder_width": config["decoder_embed_dim"],
            "decoder_depth": config["decoder_depth"],
            "decoder_heads": config["decoder_num_heads"],
        }
    setting = Setting(vit.build(encoder, config["img_size"]), num_classes, total_steps=1)
    return build(section, setting)


# Pretraining: models_mae.py


@pytest.fixture(scope="module")
def mae(reference: Path) -> Any:
    return np.load(reference / "mae_pretrain.npz")


def mae_loss(file: Any, **fields: Any) -> Any:
    """A function (params, noise) -> loss, (latent, prediction, visible) of the file's images."""
    objective = objective_of(file, {"name": "mae", **fields})
    kept = kept_patches(objective.encoder.num_patches, objective.mask_ratio)
    images = jnp.asarray(file["images"])

    def loss(params: Any, noise: jax.Array) -> Any:
        visible = lowest(noise, kept)
        count = visible.shape[1]
        shown, removed = View(images, visible, kept), View(images, ~visible, count - kept)
        z = objective.encode(params, shown)
        value, _ = objective.measure(params, {}, z, objective.patches(removed), shown, removed)
        return value.mean(), (z.tokens, objective.decode(params, z, shown), visible)

    return loss


@pytest.fixture(scope="module")
def mae_gradient(mae: Any) -> Any:
    return jax.jit(jax.value_and_grad(mae_loss(mae), has_aux=True), compiler_options=FAST_COMPILE)


@pytest.fixture(scope="module")
def mae_outcome(mae: Any, mae_gradient: Any) -> Any:
    return jax.device_get(mae_gradient(ours(group(mae, "state")), mae["noise"][0]))


def test_our_parameters_are_the_official_ones(mae: Any) -> None:
    objective = objective_of(mae, {"name": "mae"})
    params, _ = jax.eval_shape(objective.init, jax.random.key(0))
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(np.shape, ours(group(mae, "state")))


def test_visible_is_what_the_official_code_does_not_remove(mae: Any, mae_outcome: Any) -> None:
    (_, (_, _, visible)), _ = mae_outcome
    np.testing.assert_array_equal(visible, mae["removed"] == 0)


def test_latent(mae: Any, mae_outcome: Any) -> None:
    (_, (tokens, _, visible)), _ = mae_outcome
    kept = tokens.shape[1] - 1
    # Theirs are in the order of the noise, ours in raster order.
    place = np.argsort(mae["ids_restore"], axis=1)[:, :kept]
    np.testing.assert_array_equal(np.sort(place), np.nonzero(visible)[1].reshape(-1, kept))
    theirs = np.take_along_axis(mae["latent"][:, 1:], np.argsort(place, axis=1)[..., None], axis=1)
    np.testing.assert_allclose(tokens[:, 1:], theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tokens[:, 0], mae["latent"][:, 0], rtol=1e-4, atol=1e-5)


def test_prediction_and_loss(mae: Any, mae_outcome: Any) -> None:
    (loss, (_, predicted, _)), _ = mae_outcome
    np.testing.assert_allclose(predicted, mae["pred"], rtol=1e-4, atol=1e-5)
    assert loss == pytest.approx(float(mae["loss"]), rel=1e-5)


def test_every_gradient(mae: Any, mae_outcome: Any) -> None:
    _, gradient = mae_outcome
    expected = group(mae, "grad")
    assert_tree_close(gradient, expected, rtol=1e-4, atol=1e-6)
    compared = {path_of(name, value.ndim) for name, value in expected.items()}
    paths = {
        tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert {path[-1] for path in paths - compared} == {"position"}  # theirs need no gradient


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_loss_at_other_mask_ratios(mae: Any, ratio: float) -> None:
    loss = jax.jit(mae_loss(mae, mask_ratio=ratio), compiler_options=FAST_COMPILE)
    found, _ = loss(ours(group(mae, "state")), mae["noise"][0])
    assert found == pytest.approx(float(mae[f"loss_ratio_{ratio}"]), rel=1e-5)


def test_loss_of_raw_pixels(mae: Any) -> None:
    loss = jax.jit(mae_loss(mae, normalise_target=False), compiler_options=FAST_COMPILE)
    found, _ = loss(ours(group(mae, "state")), mae["noise"][0])
    assert found == pytest.approx(float(mae["loss_raw_pixels"]), rel=1e-5)


def test_four_steps_of_adamw(mae: Any, mae_gradient: Any) -> None:
    rates = jnp.asarray(mae["train_lrs"], jnp.float32)
    config = schema.Optimizer(betas=(0.9, 0.95), weight_decay=0.05)
    params = jax.tree.map(jnp.asarray, ours(group(mae, "state")))
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        optimizer = make_optimizer(config, lambda step: rates[step])
        state = optimizer.init(params)

        def update(gradient: Any, state: Any, params: Any) -> Any:
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        update = jax.jit(update, compiler_options=FAST_COMPILE)
        losses = []
        for noise in mae["noise"]:
            (loss, _), gradient = mae_gradient(params, noise)
            losses.append(float(loss))
            params, state = update(gradient, state, params)
    np.testing.assert_allclose(losses, mae["train_losses"], rtol=1e-5)
    trained = group(mae, "trained")
    assert trained
    # A bias of the keys has no gradient but rounding, which Adam blows up to full steps.
    for name in [name for name in trained if name.endswith("attn.qkv.bias")]:
        path, layer = path_of(name, 1), layer_of(name)
        width = trained[name].shape[0] // 3
        value = at(params, path)[layer]
        keep = np.r_[0:width, 2 * width : 3 * width]
        np.testing.assert_allclose(value[keep], trained[name][keep], rtol=1e-4, atol=1e-6)
        del trained[name]
    assert_tree_close(params, trained, rtol=1e-4, atol=1e-6)


def test_the_decayed_parameters_of_pretraining(mae: Any) -> None:
    official = set(mae["decayed_params"].tolist())
    config = schema.Optimizer()
    for name, value in group(mae, "state").items():
        path = tuple(DictKey(key) for key in path_of(name, value.ndim))
        assert is_decayed(path, config) == (name in official), name


# Fine-tuning: models_vit.py, lr_decay.py


@pytest.fixture(scope="module")
def classifier(reference: Path) -> Any:
    return np.load(reference / "vit_classifier.npz")


def classify(file: Any, pooling: str, weights: Any, smoothing: float = 0.0) -> Any:
    """(loss, logits), gradient of the file's images and labels."""
    labels = jnp.asarray(file["labels"], jnp.int32)
    objective = objective_of(
        file, {"name": "classification", "pooling": pooling}, file["logits"].shape[1]
    )
    view = whole(jnp.asarray(file["images"]), objective.encoder.num_patches)

    def loss(params: Any) -> Any:
        logits = objective.classify(params, objective.encode(params, view))
        return cross_entropy(logits, labels, smoothing).mean(), logits

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
    return jax.device_get(gradient(ours(weights)))


def test_classifier_of_the_mean_token(classifier: Any) -> None:
    weights = group(classifier, "state")
    (loss, logits), gradient = classify(classifier, "mean", weights, smoothing=0.1)
    np.testing.assert_allclose(logits, classifier["logits"], rtol=1e-4, atol=1e-5)
    assert loss == pytest.approx(float(classifier["loss_label_smoothing_0_1"]), rel=1e-5)
    expected = group(classifier, "grad")
    expected.pop("pos_embed", None)  # learns there; here only where the config says so
    assert_tree_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_classifier_of_the_class_token(classifier: Any) -> None:
    (_, logits), _ = classify(classifier, "class", group(classifier, "cls_state"))
    np.testing.assert_allclose(logits, classifier["cls_logits"], rtol=1e-4, atol=1e-5)


def test_layerwise_learning_rates_and_decay(classifier: Any) -> None:
    weights = group(classifier, "state")
    rates = json.loads(str(classifier["lr_scale"]))
    decays = json.loads(str(classifier["weight_decay"]))
    assert set(rates) == set(decays) == set(weights)
    config = schema.Optimizer(
        weight_decay=max(decays.values()),
        decay_tokens=False,
        layer_decay=float(classifier["layer_decay"]),
    )
    params = ours(weights)
    scales = jax.tree.map(
        lambda scale, value: np.broadcast_to(scale, np.shape(value)),
        layer_scales(params, config.layer_decay),
        params,
    )
    for name, value in weights.items():
        path, layer = path_of(name, value.ndim), layer_of(name)
        scale = at(scales, path) if layer is None else at(scales, path)[layer]
        np.testing.assert_allclose(scale, rates[name], rtol=1e-6, err_msg=name)
        decay = config.weight_decay * is_decayed(tuple(map(DictKey, path)), config)
        assert decay == decays[name], name


# pos_embed.py, lr_sched.py


@pytest.fixture(scope="module")
def schedule_and_embedding(reference: Path) -> Any:
    return np.load(reference / "optim_and_embed.npz")


def test_position_embeddings(schedule_and_embedding: Any) -> None:
    names = [n for n in schedule_and_embedding.files if n.startswith("mae_sincos_")]
    assert names
    for name in names:
        width, side = map(int, name.split("_")[-2:])
        expected = schedule_and_embedding[name]
        np.testing.assert_allclose(sincos(side, width), expected, atol=2e-6)


def test_interpolated_position_embedding(classifier: Any) -> None:
    position = converted(group(classifier, "state")["pos_embed"])
    expected = classifier["pos_embed_interpolated"].reshape(-1, position.shape[1])
    side = round((len(expected) - 1) ** 0.5)
    np.testing.assert_allclose(interpolate(position, side), expected, rtol=1e-5, atol=1e-6)


def test_learning_rate(schedule_and_embedding: Any) -> None:
    # lr .5, from 5 epochs of warm-up to 1e-6 at epoch 100: what the README beside the file says.
    config = schema.Optimizer(base_lr=0.5, min_lr=1e-6)
    epochs = schedule_and_embedding["sched_epochs"]
    steps_an_epoch = 10
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        rate = learning_rate(config, 256, 5 * steps_an_epoch, 100 * steps_an_epoch)
        found = jax.vmap(rate)(jnp.asarray(epochs * steps_an_epoch, jnp.float32))
    np.testing.assert_allclose(found, schedule_and_embedding["sched_lr"], rtol=1e-4, atol=1e-7)
