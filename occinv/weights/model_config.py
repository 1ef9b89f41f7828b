"""Reads the config files that transformers and timm write beside their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from occinv.schema import UserError
from occinv.transforms.view import IMAGENET_MEAN, IMAGENET_STD

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
RANGES = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
OFFICIAL_RANGES = {  # of the published models of a `model_type`, without a preprocessor's config
    "vit_mae": "imagenet",
    "dinov2": "imagenet",
    "dinov2_with_registers": "imagenet",
    "ijepa": "imagenet",
    "beit": "half",
}
GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
OUR_EPSILON = 1e-6


def read_model_config(folder: Path) -> dict[str, str]:
    """Return what the config files in `folder` say of a ViT, in the manner of our metadata.

    The names are `heads`, `decoder_heads`, `image_size` (`32` or `32x48`), `gelu`, `pixel_range`,
    `mask_ratio`, `normalize_target` and `note`. Names that no file states are missing.

    Raises:
      UserError: A file is not JSON, or our ViT cannot represent what it says.
    """
    config = _read(folder / CONFIG)
    if "pretrained_cfg" in config or "architecture" in config:
        return _of_timm(config)
    return _of_transformers(config, _read(folder / PREPROCESSOR)) if "model_type" in config else {}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON ({type(error).__name__}). Expected a config."
        ) from error
    return found if isinstance(found, dict) else {}


def _of_timm(config: Mapping[str, Any]) -> dict[str, str]:
    pretrained = config.get("pretrained_cfg") or {}
    model = config.get("model_args") or {}
    found = _pixel_range(pretrained.get("mean"), pretrained.get("std"))
    size = model.get("img_size", (pretrained.get("input_size") or [None, None])[1:])
    found |= _image_size(size)
    if isinstance(model.get("num_heads"), int):
        found["heads"] = str(model["num_heads"])
    return found


def _of_transformers(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> dict[str, str]:
    kind = str(config["model_type"])
    act = config.get("hidden_act", "gelu")
    if act not in GELUS or config.get("use_swiglu_ffn"):
        what = "SwiGLU MLPs" if config.get("use_swiglu_ffn") else f"the activation {act!r}"
        raise UserError(f"the ViT has {what}. Expected a GELU: our ViT has no other MLP.")
    found = {"gelu": GELUS[act], **_image_size(config.get("image_size"))}
    if preprocessor.get("do_normalize", True):
        found |= _pixel_range(preprocessor.get("image_mean"), preprocessor.get("image_std"))
    if "pixel_range" not in found and kind in OFFICIAL_RANGES:
        found["pixel_range"] = OFFICIAL_RANGES[kind]
    for ours, theirs in (
        ("heads", "num_attention_heads"),
        ("decoder_heads", "decoder_num_attention_heads"),
        ("mask_ratio", "mask_ratio"),
    ):
        if isinstance(config.get(theirs), (int, float)):
            found[ours] = str(config[theirs])
    if "norm_pix_loss" in config:
        found["normalize_target"] = str(bool(config["norm_pix_loss"]))
    epsilon = config.get("layer_norm_eps", OUR_EPSILON)
    if epsilon != OUR_EPSILON:
        found["note"] = f"layer_norm_eps: {epsilon} in the file, {OUR_EPSILON} in our ViT"
    return found


def _image_size(size: Any) -> dict[str, str]:
    """Return `image_size` of a number or of [height, width]."""
    pair = [size, size] if isinstance(size, int) else size
    if not (isinstance(pair, (list, tuple)) and len(pair) == 2):
        return {}
    if not all(isinstance(side, int) and side > 0 for side in pair):
        return {}
    return {"image_size": f"{pair[0]}x{pair[1]}"}


def _pixel_range(mean: Any, std: Any) -> dict[str, str]:
    """Return `pixel_range` of a mean and a standard deviation; {} if they are not stated."""
    if mean is None or std is None:
        return {}
    try:
        given = np.asarray((mean, std), float).reshape(2, -1)
        if (given == given[:, :1]).all():  # the same for any number of channels
            given = given[:, :1]
        given = np.broadcast_to(given, (2, 3))
    except (TypeError, ValueError):
        given = np.full((2, 3), np.nan)
    for name, known in RANGES.items():
        if np.allclose(given, known, atol=1e-3):
            return {"pixel_range": name}
    return {"pixel_range": f"mean {mean} and standard deviation {std}"}
