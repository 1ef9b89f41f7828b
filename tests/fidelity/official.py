"""Official arrays in our names and layouts, and the comparison behind docs/fidelity.md."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occinv import schema
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.objectives import forward
from occinv.objectives.base import Setting, Terms, make_objective
from occinv.rng import image_rngs
from occinv.transforms.view import IMAGENET_MEAN, IMAGENET_STD, View

PLACES = {  # regular expressions of official names -> our path
    r"cls_token": "encoder class_token",
    r"pos_embed": "encoder position",
    r"patch_embed\.proj": "encoder patch_embed",
    r"norm": "encoder norm",
    r"mask_token": "decoder mask_token",
    r"(encoder|regressor|predictor)\.mask_token": r"\1 mask_token",
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
    r"lm_head": "head",  # BEiT
    r"pretext_neck\.regressor_blocks\.\d+\.(.*)": r"regressor scan \1",  # CAE
    r"pretext_neck\.decoder_blocks\.\d+\.(.*)": r"regressor decoder scan \1",
    r"pretext_neck\.(norm|head)": r"regressor \1",
    r"pretext_neck\.norm2": "regressor decoder_norm",
    r"predictor_(embed|norm)": r"predictor \1",  # I-JEPA
    r"predictor_proj": "predictor predict",
    r"predictor_blocks\.\d+\.(.*)": r"predictor blocks scan \1",
}
INSIDE_A_BLOCK = {  # replaced one after the other
    "cross_attn.proj": "attention out",
    "cross_attn.": "attention ",
    "mlp_cross.fc1": "mlp in",
    "mlp_cross.fc2": "mlp out",
    "norm1_": "norm_",
    "norm2_cross": "norm_mlp",
    "gamma_1_cross": "scale_attention scale",
    "gamma_2_cross": "scale_mlp scale",
    "gamma_1": "scale1 scale",
    "gamma_2": "scale2 scale",
    "attn.qkv": "attention qkv",
    "attn.proj": "attention out",
    "mlp.fc1": "mlp in",
    "mlp.fc2": "mlp out",
}


def path_of(name: str, dimensions: int) -> tuple[str, ...]:
    """Return the path in our tree of the official parameter `name` with `dimensions` axes."""
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
    """Return the block of a parameter; our blocks are stacked along the first axis."""
    match = re.search(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else None


def converted(value: np.ndarray) -> np.ndarray:
    """Return an official array in our layout."""
    if value.ndim == 4:  # a convolution [out, in, h, w] over a patch that is (h, w, in) for us
        return value.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    if value.ndim == 3:  # tokens [1, 1, D] and position embeddings [1, 1 + N, D]
        return value[0, 0] if value.shape[1] == 1 else value[0]
    return value.T


def group(file: Any, prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file whose names start with `prefix`/, by the rest of the name."""
    start = prefix + "/"
    return {k.removeprefix(start): file[k] for k in file if k.startswith(start)}


def ours(weights: dict[str, np.ndarray]) -> Any:
    """Return official parameters by name as our nested dict."""
    layers: dict[tuple[str, ...], list[np.ndarray]] = {}
    for name in sorted(weights, key=lambda name: (layer_of(name) or 0, name)):
        path = path_of(name, weights[name].ndim)
        layers.setdefault(path, []).append(converted(weights[name]))
    tree: dict[str, Any] = {}
    for path, values in layers.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = np.stack(values) if "scan" in path else values[0]
    return tree


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """Return the leaf or subtree at a path."""
    for key in path:
        tree = tree[key]
    return tree


# The rows of docs/fidelity.md: the compared quantity, and the official function.
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
    "BEiT: loss": "`forward`, modeling_pretrain.py, and cross-entropy",
    "BEiT: every gradient": "its backward pass",
    "CAE: cross-entropy": "`forward`, modeling_cae.py, and cross-entropy",
    "CAE: alignment": "`forward`, modeling_cae.py, and mean square",
    "CAE: position embedding": "that of modeling_cae.py",
    "CAE: every gradient": "their backward pass",
    "data2vec: loss": "modeling_cyclical.py and `train_one_epoch`, engine_for_cyclical.py",
    "data2vec: every gradient": "its backward pass",
    "iBOT: loss of the class token": "`iBOTLoss.forward`, main_ibot.py",
    "iBOT: loss of the patches": "`iBOTLoss.forward`, main_ibot.py",
    "iBOT: gradients of the student's three outputs": "its backward pass",
    "iBOT: both centers": "`iBOTLoss.update_center`, main_ibot.py",
    "iBOT: teacher temperature": "`iBOTLoss.__init__`, main_ibot.py",
    "I-JEPA: loss": "`VisionTransformerPredictor`, vision_transformer.py, and smoothed L1",
    "I-JEPA: every gradient of the predictor": "its backward pass",
    "I-JEPA: gradient of the context tokens": "its backward pass",
    "I-JEPA: position embedding": "`get_2d_sincos_pos_embed`, vision_transformer.py",
    "I-JEPA: learning rate after the warm-up": "`WarmupCosineSchedule`, schedulers.py",
    "I-JEPA: weight decay": "`CosineWDSchedule`, schedulers.py",
    "DALL·E: logits of the encoder": "`Encoder`, dall_e/encoder.py in the code of BEiT",
    "RandAugment: the 15 operations": "timm's auto_augment.py, with Pillow",
    "Sine-cosine position embedding": "`get_2d_sincos_pos_embed`, pos_embed.py",
    "Interpolated position embedding": "`interpolate_pos_embed`, pos_embed.py",
    "Learning-rate schedule": "`adjust_learning_rate`, lr_sched.py",
    "LARS, five steps": "lars.py",
}
ERRORS: dict[str, tuple[float, float]] = {}  # piece -> largest error found, tolerance


def agrees(piece: str, found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Assert that `found` has every array of the tree `expected`, with equal values.

    The allowed difference of a value v is `tolerance` · (|v| + 0.2 · m). Here m is the largest
    value of its array, because terms of a sum cancel, and at least a twentieth of the largest value
    of all arrays, because some gradients are zero but for rounding. The largest error as a share of
    m is a cell of the table.
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
    """Return the paths of the leaves."""
    return [tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(tree)]


def pixels_of(images: np.ndarray) -> jax.Array:
    """Return official images, which are normalized, as pixels in [0, 1].

    Computed in float64, because our encoder normalizes the pixels again.
    """
    pixels = images.astype(np.float64) * IMAGENET_STD + np.array(IMAGENET_MEAN)
    return jnp.asarray(pixels, jnp.float32)


def with_views(objective: Any, *views: View, **members: Any) -> Any:
    """Return the same objective with these views instead of random ones, and other members."""

    class Given(type(objective)):  # type: ignore[misc]
        def views(self, pixels: Any, rng: Any) -> Any:
            return views

    for name, member in members.items():
        setattr(Given, name, member)
    fields = {f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)}
    return Given(**fields)


def inputs(count: int, labels: np.ndarray | None = None) -> tuple[Batch, jax.Array, jax.Array]:
    """Return batch, rng and step of `count` images, whose pixels come from `with_views`."""
    black = np.zeros((count, 1, 1, 3), np.uint8)
    labels = np.zeros(count, np.int32) if labels is None else labels.astype(np.int32)
    batch = Batch(black, labels, np.arange(count), np.ones(count, np.float32))
    step = jnp.int32(0)
    return batch, image_rngs(jax.random.key(0), step, count), step


def loss_and_features(
    objective: Any, params: Any, state: Any, count: int, labels: np.ndarray | None = None
) -> tuple[jax.Array, tuple[Terms, Any]]:
    """Return the mean loss, and (terms, features), of `count` images; the target does not move."""
    batch, rng, step = inputs(count, labels)
    views, z = forward.represent(objective, params, state, batch, rng, step)
    terms = forward.compare(objective, params, state, views, z, batch, rng, step)
    return terms.loss.mean(), (terms, z)


def differentiated(function: Any, params: Any) -> Any:
    """Return ((value, other results), gradient) of `function(params)` as NumPy arrays."""
    return jax.device_get(jax.jit(jax.value_and_grad(function, has_aux=True))(params))


def outcome_of(objective: Any, params: Any, state: Any, count: int) -> Any:
    """Return ((loss, (terms, features)), gradient) of `count` images as NumPy arrays."""
    return differentiated(lambda p: loss_and_features(objective, p, state, count), params)


def fitting(
    compute: Callable[[Any], Any],
    candidates: Iterable[Any],
    official: Any,
    found: Callable[[Any], Any] = lambda outcome: outcome[0][0],
) -> Any:
    """Return `compute(x)` of the candidate x whose losses are the official ones.

    It is for a number that the file does not have, such as that of the attention heads.

    Args:
      compute: From a candidate to an outcome.
      candidates: The likeliest first: the search ends at the first that agrees to 2e-6. If none
        does, the nearest is returned.
      official: The official loss or losses.
      found: From an outcome to the same losses; by default the value that was differentiated.
    """
    outcomes = []
    for candidate in candidates:
        outcome = compute(candidate)
        error = np.abs(np.divide(found(outcome), official) - 1).max()
        outcomes.append((error, outcome))
        if error < 2e-6:
            break
    return min(outcomes, key=lambda pair: pair[0])[1]


def heads_for(width: int) -> list[int]:
    """Return every possible number of heads; first the one with 8 channels a head."""
    divisors = [heads for heads in range(1, width + 1) if width % heads == 0]
    return sorted(divisors, key=lambda heads: abs(width / heads - 8))


def objective_of(file: Any, section: dict[str, Any], num_classes: int = 0, **fields: Any) -> Any:
    """Return the objective of `section`, with an encoder of the file's sizes and other `fields`."""
    config = json.loads(str(file["config"]))
    encoder = schema.Encoder(
        name="micro",
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        **fields,
    )
    if section["name"] == "mae":
        section = section | {
            "decoder_width": config["decoder_embed_dim"],
            "decoder_depth": config["decoder_depth"],
            "decoder_heads": config["decoder_num_heads"],
        }
    setting = Setting(vit.make_vit(encoder, config["img_size"]), num_classes, total_steps=1)
    return make_objective(section, setting)
