"""Makes the folder of a model of transformers: config, preprocessor and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from occinv.models.decoder import Decoder
from occinv.models.vit import ViT
from occinv.objectives.classification import Classification
from occinv.schema import UserError
from occinv.size import sides, size_text
from occinv.train.workdir import TrainedRun
from occinv.weights.library_names import TO_DINOV2, TO_VIT, renamed
from occinv.weights.model_config import CONFIG, GELUS, OUR_EPSILON, PREPROCESSOR, RANGES
from occinv.weights.pytorch_names import decoder_to_pytorch, to_pytorch

# Base models have no prefix; a model with a head or a decoder has one for its encoder.
PREFIXED = ("embeddings.", "encoder.", "layernorm.")


class HuggingFaceModel(NamedTuple):
    """A model of transformers.

    Attributes:
      arrays: Arrays by name.
      config, preprocessor: The contents of config.json and preprocessor_config.json.
      written: The components of the run that it has.
      load: The call that loads it from FOLDER.
    """

    arrays: dict[str, np.ndarray]
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    written: set[str]
    load: str


def huggingface_model(trained: TrainedRun, path: str | Path) -> HuggingFaceModel:
    """Return the model of transformers that computes the features of a run.

    It is `ViTMAEForPreTraining` for a run with a decoder of pixels, `ViTForImageClassification` for
    a classifier of the class token, `Dinov2Model` or `Dinov2WithRegistersModel` with LayerScale or
    registers, and `ViTModel` otherwise.

    Raises:
      UserError: No model of transformers has all parts of the run.
    """
    networks = trained.objective.networks
    encoder, params = networks.encoder, dict(trained.params)
    config: dict[str, Any] = {
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": next(name for name in reversed(GELUS) if GELUS[name] == encoder.gelu),
        "hidden_dropout_prob": 0.0,
        "hidden_size": encoder.width,
        "image_size": encoder.image_size,
        "layer_norm_eps": OUR_EPSILON,
        "num_attention_heads": encoder.heads,
        "num_channels": encoder.channels,
        "num_hidden_layers": encoder.depth,
        "patch_size": encoder.patch_size,
        "qkv_bias": True,
    }
    is_dinov2 = encoder.layer_scale is not None or encoder.registers
    decoder = getattr(networks, "decoder", None)
    written, head = {"encoder"}, None
    if is_dinov2:
        name, kind = "Dinov2Model", "dinov2"
        config |= {"mlp_ratio": 4, "use_swiglu_ffn": False, "drop_path_rate": 0.0}
        if encoder.registers:
            name, kind = "Dinov2WithRegistersModel", "dinov2_with_registers"
            config["num_register_tokens"] = encoder.registers
    else:
        name, kind = "ViTModel", "vit"
        config["intermediate_size"] = 4 * encoder.width
        # Its target is the pixels as the encoder gets them; ours is in ImageNet's range.
        if isinstance(decoder, Decoder) and encoder.pixel_range == "imagenet":
            name, kind = "ViTMAEForPreTraining", "vit_mae"
            config |= _decoder_config(decoder, trained.objective)
            written.add("decoder")
        elif isinstance(trained.objective, Classification):
            name = "ViTForImageClassification"
            labels = dict(enumerate(trained.classes))
            config |= {"id2label": labels, "label2id": {v: k for k, v in labels.items()}}
            written.add("head")
            head = params["head"]
    if is_dinov2 and isinstance(trained.objective, Classification):
        raise UserError(
            f"{path} is a classifier with LayerScale or registers, which transformers lacks. "
            "Expected a plain ViT: use --to timm."
        )
    is_square = isinstance(encoder.image_size, int) and isinstance(encoder.patch_size, int)
    if kind != "vit" and not is_square:
        raise UserError(
            f"{path} has images of {size_text(encoder.image_size)} and patches of "
            f"{size_text(encoder.patch_size)} pixels, but {name} of transformers reads squares. "
            "Use --to timm."
        )
    arrays = _with_parts_of(kind, to_pytorch(encoder, params["encoder"], head), encoder.depth)
    if "decoder" in written:
        decoder_arrays = decoder_to_pytorch(params["decoder"])
        arrays |= {"decoder.mask_token": decoder_arrays.pop("mask_token"), **decoder_arrays}
    rules = TO_DINOV2 if is_dinov2 else TO_VIT
    named = {renamed(key, rules): value for key, value in _apart(arrays).items()}
    if len(written) > 1:
        named = {f"vit.{n}" if n.startswith(PREFIXED) else n: v for n, v in named.items()}
    load = f"transformers.{name}.from_pretrained(FOLDER)"
    if name == "ViTModel":
        load = load.replace("FOLDER", "FOLDER, add_pooling_layer=False")
    config |= {"architectures": [name], "model_type": kind}
    return HuggingFaceModel(named, config, _preprocessor(encoder), written, load)


def _preprocessor(encoder: ViT) -> dict[str, Any]:
    """Return the fields of preprocessor_config.json."""
    mean, std = RANGES[encoder.pixel_range]
    height, width = sides(encoder.image_size)
    return {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(mean) if encoder.channels == 3 else [0.5] * encoder.channels,
        "image_processor_type": "ViTImageProcessor",
        "image_std": list(std) if encoder.channels == 3 else [0.5] * encoder.channels,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": height, "width": width},
    }


def _decoder_config(decoder: Decoder, objective: Any) -> dict[str, Any]:
    return {
        "decoder_hidden_size": decoder.width,
        "decoder_intermediate_size": 4 * decoder.width,
        "decoder_num_attention_heads": decoder.heads,
        "decoder_num_hidden_layers": decoder.depth,
        "mask_ratio": getattr(objective, "mask_ratio", 0.75),
        "norm_pix_loss": getattr(objective, "normalize_target", True),
    }


def _with_parts_of(
    kind: str, arrays: Mapping[str, np.ndarray], depth: int
) -> dict[str, np.ndarray]:
    """Return the arrays with the parts that a model always has, and without those it never has.

    Dinov2 has a mask token, which does not change the features of whole images, and LayerScale,
    which is the identity if it is 1.
    """
    found = dict(arrays)
    mask_token = found.pop("mask_token", None)
    width = found["patch_embed.proj.bias"].shape[0]
    if kind.startswith("dinov2"):
        zeros = np.zeros((1, width), np.float32)
        found["mask_token"] = zeros if mask_token is None else mask_token[0]
        for block in range(depth):
            for name in ("ls1", "ls2"):
                found.setdefault(f"blocks.{block}.{name}.gamma", np.ones(width, np.float32))
    return found


def _apart(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with separate queries, keys and values."""
    found: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if ".attn.qkv." not in name:
            found[name] = value
            continue
        for letter, part in zip("qkv", np.split(value, 3), strict=True):
            found[name.replace(".attn.qkv.", f".attn.{letter}.")] = part
    return found


def write_folder(folder: Path, arrays: Mapping[str, np.ndarray], model: HuggingFaceModel) -> None:
    """Write the folder of a model."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save(dict(arrays), {"format": "pt"}))
    for name, content in ((CONFIG, model.config), (PREPROCESSOR, model.preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
