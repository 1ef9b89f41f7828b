"""Official names and layouts as ours, and the comparison whose errors docs/fidelity.md lists."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occinv import schema
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.objectives.base import Setting, make_objective
from occinv.rng import image_rngs
from occinv.transforms.view import View

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
    "MAE: loss, normalized pixels, four mask ratios": "`forward_loss`, models_mae.py",
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
    "DINO: center": "`DINOLoss.update_center`, main_dino.py",
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
    keys = image_rngs(jax.random.key(0), jnp.int32(0), images)

    def loss(params: Any) -> Any:
        return objective.loss(params, state, batch, keys, jnp.int32(0))

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
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
    setting = Setting(vit.make_vit(encoder, config["img_size"]), num_classes, total_steps=1)
    return make_objective(section, setting)
