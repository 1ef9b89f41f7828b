"""What the official PyTorch code computes from the same weights, images and noise.

The arrays are read from the folder of the fixture `reference`; every size comes from the files.
Weights have the official names and PyTorch's layouts; `ours` is the mapping to our tree.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.tree_util import DictKey

from occinv import schema
from occinv.data.batch import Batch
from occinv.encoder import vit
from occinv.encoder.position import interpolate, sincos
from occinv.measure.losses import cross_entropy
from occinv.objective.base import Setting, build
from occinv.train.optimizer import is_decayed, layer_scales, learning_rate, make_optimizer
from occinv.transform.keys import image_keys
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
    r"head\.mlp\.(\d)": r"head linear\1",  # DINO
    r"head\.last_layer": "head last",
    r"head\.(\d)": r"projector \1",  # MoCo v3
    r"predictor\.(\d)": r"predictor \1",
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


# What is compared, and with which official function: the rows of docs/fidelity.md.
PIECES = {
    "MAE: latent": "`forward_encoder`, models_mae.py",
    "MAE: prediction": "`forward_decoder`, models_mae.py",
    "MAE: loss, normalised pixels, four mask ratios": "`forward_loss`, models_mae.py",
    "MAE: loss, raw pixels": "`forward_loss`, models_mae.py",
    "MAE: every gradient": "its backward pass",
    "MAE: losses of four AdamW steps": "`param_groups_weight_decay` and torch's AdamW",
    "MAE: weights after four AdamW steps": "`param_groups_weight_decay` and torch's AdamW",
    "Classifier: logits of the mean token": "`forward_features`, models_vit.py",
    "Classifier: logits of the class token": "`forward_features`, models_vit.py",
    "Classifier: label-smoothed loss": "timm's LabelSmoothingCrossEntropy",
    "Classifier: every gradient": "its backward pass",
    "Classifier: learning rate of each layer": "`param_groups_lrd`, lr_decay.py",
    "MoCo v3: loss": "`contrastive_loss`, moco/builder.py",
    "MoCo v3: every gradient": "its backward pass",
    "MoCo v3: momentum update": "`_update_momentum_encoder`, moco/builder.py",
    "DINO: student on all crops": "`MultiCropWrapper` and `DINOHead`",
    "DINO: teacher": "`MultiCropWrapper` and `DINOHead`",
    "DINO: loss": "`DINOLoss.forward`, main_dino.py",
    "DINO: centre": "`DINOLoss.update_center`, main_dino.py",
    "DINO: every gradient": "its backward pass",
    "Sine-cosine position embedding": "`get_2d_sincos_pos_embed`, pos_embed.py",
    "Interpolated position embedding": "`interpolate_pos_embed`, pos_embed.py",
    "Learning-rate schedule": "`adjust_learning_rate`, lr_sched.py",
    "LARS, five steps": "lars.py",
}
ERRORS: dict[str, tuple[float, float]] = {}  # piece -> largest error found, tolerance


def agrees(piece: str, found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Every array of the tree `expected` is in `found`, and as close as float32 sums can be.

    A value may be off by `tolerance` of itself, by a fifth of that of the largest of its array
    (sums cancel), or by a hundredth of that of the largest of all (what is zero but for rounding).
    The largest error, as a share of the largest value of its array, goes into the table.
    """
    assert piece in PIECES
    error = ERRORS.get(piece, (0.0, 0.0))[0]
    leaves = jax.tree.leaves_with_path(expected)
    largest = max(np.abs(leaf).max() for _, leaf in leaves)
    for path, leaf in leaves:
        value = at(found, tuple(key.key for key in path))
        scale = max(np.abs(leaf).max(), 0.05 * largest)
        name = f"{piece} {jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(
            value, leaf, rtol=tolerance, atol=0.2 * tolerance * scale, err_msg=name
        )
        error = max(error, float(np.abs(np.asarray(value, np.float64) - leaf).max() / scale))
    ERRORS[piece] = (error, tolerance)


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest, repository: Path) -> Iterator[None]:
    """With --fidelity-table, writes what the tests of this file have found into the page."""
    yield
    if not request.config.getoption("--fidelity-table"):
        return
    missing = [piece for piece in PIECES if piece not in ERRORS]
    assert not missing, f"not compared in this run: {missing}"
    lines = [
        "| piece | official function | largest error | tolerance |",
        "| --- | --- | ---: | ---: |",
    ]
    for piece, official in PIECES.items():
        error, tolerance = ERRORS[piece]
        lines.append(f"| {piece} | {official} | {error:.0e} | {tolerance:.0e} |")
    page = repository / "docs" / "fidelity.md"
    before, _, rest = page.read_text().partition("<!-- table -->")
    _, _, after = rest.partition("<!-- end of table -->")
    middle = "\n".join(["<!-- table -->", *lines, "<!-- end of table -->"])
    page.write_text(before + middle + after)


def test_the_page_has_every_piece(repository: Path) -> None:
    page = (repository / "docs" / "fidelity.md").read_text()
    assert [piece for piece in PIECES if f"| {piece} |" not in page] == []


def paths(tree: Any) -> list[tuple[str, ...]]:
    """Where the leaves are."""
    return [tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(tree)]


def with_views(objective: Any, views: list[View], cls: Any = None) -> Any:
    """The same objective, whose transformation returns these views."""

    class Given(cls or type(objective)):  # type: ignore[misc]
        def transform(self, pixels: Any, keys: Any) -> Any:
            return tuple(views)

    fields = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    return Given(**fields)


def differentiated(objective: Any, params: Any, state: Any, images: int) -> Any:
    """(loss, state, gradient) of `objective.loss` at step 0."""
    nothing = np.zeros((images, 1, 1, 3), np.uint8)
    batch = Batch(nothing, np.arange(images), np.arange(images), np.ones(images, np.float32))
    keys = image_keys(jax.random.key(0), jnp.int32(0), images)

    def loss(params: Any) -> Any:
        return objective.loss(params, state, batch, keys, jnp.int32(0))

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST_COMPILE)
    (value, (state, _)), gradients = jax.device_get(gradient(params))
    return value, state, gradients


def objective_of(
    file: Any, section: dict[str, Any], num_classes: int = 0, train_position: bool = False
) -> Any:
    """The objective whose encoder has the sizes that the file was computed with."""
    config = json.loads(str(file["config"]))
    encoder = schema.Encoder(
        name="micro",
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        train_position=train_position,
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
    theirs = np.concatenate([mae["latent"][:, :1], theirs], axis=1)
    agrees("MAE: latent", tokens, theirs)


def test_prediction_and_loss(mae: Any, mae_outcome: Any) -> None:
    (loss, (_, predicted, _)), _ = mae_outcome
    agrees("MAE: prediction", predicted, mae["pred"])
    agrees("MAE: loss, normalised pixels, four mask ratios", loss, mae["loss"], 1e-5)


def test_every_gradient(mae: Any, mae_outcome: Any) -> None:
    _, gradient = mae_outcome
    expected = group(mae, "grad")
    agrees("MAE: every gradient", gradient, ours(expected))
    compared = {path_of(name, value.ndim) for name, value in expected.items()}
    paths = {
        tuple(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(gradient)
    }
    assert {path[-1] for path in paths - compared} == {"position"}  # theirs need no gradient


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_loss_at_other_mask_ratios(mae: Any, ratio: float) -> None:
    loss = jax.jit(mae_loss(mae, mask_ratio=ratio), compiler_options=FAST_COMPILE)
    found, _ = loss(ours(group(mae, "state")), mae["noise"][0])
    expected = mae[f"loss_ratio_{ratio}"]
    agrees("MAE: loss, normalised pixels, four mask ratios", found, expected, 1e-5)


def test_loss_of_raw_pixels(mae: Any) -> None:
    loss = jax.jit(mae_loss(mae, normalise_target=False), compiler_options=FAST_COMPILE)
    found, _ = loss(ours(group(mae, "state")), mae["noise"][0])
    agrees("MAE: loss, raw pixels", found, mae["loss_raw_pixels"], 1e-5)


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
    agrees("MAE: losses of four AdamW steps", np.array(losses), mae["train_losses"], 1e-5)
    trained = group(mae, "trained")
    assert trained
    # A bias of the keys has no gradient but rounding, which Adam blows up to full steps.
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


# MoCo v3: moco/builder.py


@pytest.fixture(scope="module")
def moco(reference: Path) -> Any:
    return np.load(reference / "mocov3.npz")


def moco_weights(weights: dict[str, np.ndarray]) -> Any:
    """Official parameters of encoder, projector and predictor as our nested dict."""
    learnt = {
        name.removeprefix("base_encoder."): value
        for name, value in weights.items()
        if not name.startswith("momentum_encoder.")
        and "running" not in name
        and "num_batches" not in name
    }
    tree = ours(learnt)
    for head in set(tree) - {"encoder"}:  # modules are numbered with the ReLUs between them
        numbered = tree[head]
        tree[head] = {
            f"{'linear' if int(i) % 3 == 0 else 'norm'}{int(i) // 3}": value
            for i, value in numbered.items()
        }
    return tree


def momentum_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    start = "momentum_encoder."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


@pytest.fixture(scope="module")
def moco_outcome(moco: Any) -> Any:
    objective = objective_of(
        moco,
        {
            "name": "mocov3",
            "temperature": float(moco["temperature"]),
            "momentum": float(moco["momentum"]),
            "head_hidden": int(moco["mlp_dim"]),
            "head_out": int(moco["dim"]),
        },
    )
    count = objective.encoder.num_patches
    views = [whole(jnp.asarray(moco[name]), count) for name in ("view1", "view2")]
    objective = with_views(objective, views)
    weights = group(moco, "state")
    state = {"target": moco_weights(momentum_weights(weights))}
    return differentiated(objective, moco_weights(weights), state, len(moco["view1"]))


def test_moco_loss(moco: Any, moco_outcome: Any) -> None:
    loss, _, _ = moco_outcome
    agrees("MoCo v3: loss", loss, moco["loss"], 1e-5)


def test_every_moco_gradient(moco: Any, moco_outcome: Any) -> None:
    _, _, gradient = moco_outcome
    expected = moco_weights(group(moco, "grad"))
    agrees("MoCo v3: every gradient", gradient, expected)
    for frozen in ("patch_embed", "position"):
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["encoder"][frozen]))


def test_moco_momentum_moves_before_the_forward_pass(moco: Any, moco_outcome: Any) -> None:
    _, state, _ = moco_outcome
    expected = moco_weights(group(moco, "momentum_after"))
    agrees("MoCo v3: momentum update", state["target"], expected, 1e-6)


def test_what_moco_does_not_train(moco: Any) -> None:
    objective = objective_of(moco, {"name": "mocov3"})
    trained = set(paths(moco_weights(group(moco, "grad"))))
    below = {path[:2] for path in set(paths(moco_weights(group(moco, "state")))) - trained}
    assert set(objective.learns_late) <= below
    assert not {path[:2] for path in trained} & set(objective.learns_late)
    config = schema.Optimizer(decay="all")
    assert all(is_decayed(tuple(map(DictKey, path)), config) for path in trained)


# DINO: main_dino.py, vision_transformer.py


@pytest.fixture(scope="module")
def dino(reference: Path) -> Any:
    return np.load(reference / "dino.npz")


def dino_weights(weights: dict[str, np.ndarray]) -> Any:
    """Official parameters of backbone and head as our nested dict."""
    norm = "head.last_layer.weight_"
    plain = {name.removeprefix("backbone."): v for name, v in weights.items() if norm not in name}
    tree = ours(plain)
    for i in sorted(tree["head"]):
        tree["head"][f"linear{int(i[-1]) // 2}x"] = tree["head"].pop(i)
    tree["head"] = {name.removesuffix("x"): value for name, value in tree["head"].items()}
    tree["head"]["last"] = {
        mine: weights[norm + theirs].T if mine == "kernel" else weights[norm + theirs][:, 0]
        for theirs, mine in (("v", "kernel"), ("g", "scale"))
        if norm + theirs in weights
    }
    return tree


@pytest.fixture(scope="module")
def dino_outcome(dino: Any) -> Any:
    head = json.loads(str(dino["head"]))
    objective = objective_of(
        dino,
        {
            "name": "dino",
            "num_prototypes": head["out_dim"],
            "head_hidden": head["hidden_dim"],
            "bottleneck": head["bottleneck_dim"],
            "local_crops": len(dino["local_crops"]),
            "local_size": dino["local_crops"].shape[2],
            "student_temperature": float(dino["student_temp"]),
            "centre_momentum": float(dino["center_momentum"]),
        },
        train_position=True,
    )
    size = objective.encoder.patch_size
    views = [
        whole(jnp.asarray(crop), (crop.shape[1] // size) ** 2)
        for crop in (*dino["global_crops"], *dino["local_crops"])
    ]

    class AtThisTemperature(type(objective)):  # type: ignore[misc]
        def advance(self, params: Any, state: Any, step: Any) -> Any:
            return state

    objective = with_views(objective, views, AtThisTemperature)
    state = {
        "target": dino_weights(group(dino, "teacher")),
        "centre": jnp.asarray(dino["center_before"][0]),
        "temperature": jnp.float32(dino["teacher_temp"]),
    }
    params = dino_weights(group(dino, "student"))
    outcome = differentiated(objective, params, state, len(views[0].pixels))
    said = jax.jit(
        lambda params, target: (
            [objective.source(params, view) for view in views],
            [objective.source(target, view) for view in views[:2]],
        ),
        compiler_options=FAST_COMPILE,
    )(params, state["target"])
    return *outcome, jax.device_get(said)


def test_what_dino_says_of_every_crop(dino: Any, dino_outcome: Any) -> None:
    *_, (student, teacher) = dino_outcome
    agrees("DINO: student on all crops", np.concatenate(student), dino["student_out"])
    agrees("DINO: teacher", np.concatenate(teacher), dino["teacher_out"])


def test_dino_loss_and_centre(dino: Any, dino_outcome: Any) -> None:
    loss, state, *_ = dino_outcome
    agrees("DINO: loss", loss, dino["loss"], 1e-5)
    agrees("DINO: centre", state["centre"], dino["center_after"][0])


def test_every_dino_gradient(dino: Any, dino_outcome: Any) -> None:
    _, _, gradient, _ = dino_outcome
    expected = dino_weights(group(dino, "grad"))
    agrees("DINO: every gradient", gradient, expected)
    assert not gradient["head"]["last"]["scale"].any()  # theirs needs no gradient


def test_what_dino_decays(dino: Any) -> None:
    config = schema.Optimizer(decay="positions")
    for name, value in group(dino, "grad").items():  # get_params_groups of the official utils.py
        theirs = not name.endswith(".bias") and value.ndim > 1
        last = ("head", "last", "kernel")
        path = last if "last" in name else path_of(name.removeprefix("backbone."), value.ndim)
        assert is_decayed(tuple(map(DictKey, path)), config) == theirs, name


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
    agrees("Classifier: logits of the mean token", logits, classifier["logits"])
    smoothed = classifier["loss_label_smoothing_0_1"]
    agrees("Classifier: label-smoothed loss", loss, smoothed, 1e-5)
    expected = group(classifier, "grad")
    expected.pop("pos_embed", None)  # learns there; here only where the config says so
    agrees("Classifier: every gradient", gradient, ours(expected))


def test_classifier_of_the_class_token(classifier: Any) -> None:
    (_, logits), _ = classify(classifier, "class", group(classifier, "cls_state"))
    agrees("Classifier: logits of the class token", logits, classifier["cls_logits"])


def test_layerwise_learning_rates_and_decay(classifier: Any) -> None:
    weights = group(classifier, "state")
    rates = json.loads(str(classifier["lr_scale"]))
    decays = json.loads(str(classifier["weight_decay"]))
    assert set(rates) == set(decays) == set(weights)
    config = schema.Optimizer(
        weight_decay=max(decays.values()),
        decay="kernels",
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
        agrees("Classifier: learning rate of each layer", scale.max(), np.array(rates[name]), 1e-6)
        assert scale.max() == scale.min()
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
        agrees("Sine-cosine position embedding", sincos(side, width), expected, 1e-5)


def test_interpolated_position_embedding(classifier: Any) -> None:
    position = converted(group(classifier, "state")["pos_embed"])
    expected = classifier["pos_embed_interpolated"].reshape(-1, position.shape[1])
    side = round((len(expected) - 1) ** 0.5)
    agrees("Interpolated position embedding", interpolate(position, side), expected, 1e-5)


def test_five_steps_of_lars(schedule_and_embedding: Any) -> None:
    file = schedule_and_embedding
    hparams = json.loads(str(file["lars_hparams"]))
    assert hparams.pop("trust_coefficient") == 1e-3
    config = schema.Optimizer(
        name="lars", weight_decay=hparams["weight_decay"], momentum=hparams["momentum"]
    )
    # Only matrices decay and are trusted: by our names, kernels.
    names = {"w": "kernel", "b": "bias", "z": "z/kernel"}
    weights = {mine: jnp.asarray(file[f"lars/{theirs}"][0]) for theirs, mine in names.items()}
    params = unflatten_dict(weights, sep="/")
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        optimizer = make_optimizer(config, lambda step: jnp.float32(hparams["lr"]))
        state = optimizer.init(params)
        for step in range(len(file["lars_grad/w"])):
            gradient = {mine: file[f"lars_grad/{theirs}"][step] for theirs, mine in names.items()}
            updates, state = optimizer.update(unflatten_dict(gradient, sep="/"), state, params)
            params = optax.apply_updates(params, updates)
            found = flatten_dict(params, sep="/")
            for theirs, mine in names.items():
                expected = file[f"lars/{theirs}"][step + 1]
                agrees("LARS, five steps", found[mine], expected, 1e-5)


def test_learning_rate(schedule_and_embedding: Any) -> None:
    # lr .5, from 5 epochs of warm-up to 1e-6 at epoch 100: what the README beside the file says.
    config = schema.Optimizer(base_lr=0.5, min_lr=1e-6)
    epochs = schedule_and_embedding["sched_epochs"]
    steps_an_epoch = 10
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        rate = learning_rate(config, 256, 5 * steps_an_epoch, 100 * steps_an_epoch)
        found = jax.vmap(rate)(jnp.asarray(epochs * steps_an_epoch, jnp.float32))
    agrees("Learning-rate schedule", found, schedule_and_embedding["sched_lr"])
