"""Exports the encoder of a workdir, with its classifier or decoder, for another library."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from occinv.models.vit import ViT
from occinv.objectives.classification import Classification
from occinv.paths import in_bucket
from occinv.schema import UserError
from occinv.size import stored_text
from occinv.train import workdir
from occinv.train.disk import naming
from occinv.weights import Target, big_vision_names
from occinv.weights.export_huggingface import huggingface_model, write_folder
from occinv.weights.import_report import grouped
from occinv.weights.pytorch_names import to_pytorch

ASSUMED: dict[Target, dict[str, str]] = {  # by readers of the format
    "timm": {"gelu": "erf", "pixel_range": "imagenet"},
    "huggingface": {},
    "big_vision": {"gelu": "tanh", "pixel_range": "half"},
}
ABSENT: dict[Target, dict[str, Any]] = {  # fields of the encoder with the only value that works
    "timm": {"relative_position": None},
    "huggingface": {"relative_position": None, "class_token": True},
    "big_vision": {"relative_position": None, "layer_scale": None, "registers": 0},
}
METADATA, SIZES = ("heads", "gelu", "pixel_range"), ("image_size", "patch_size")


def export_weights(path: str | Path, target: Target, file: Path) -> str:
    """Write the encoder of a run under another library's names.

    The head of a classifier is included, and for `huggingface` the decoder of MAE.

    Args:
      path: A workdir or one of its checkpoints.
      target: `timm` writes safetensors, with sizes, GELU and pixel range in the metadata;
        `huggingface` writes a folder for `from_pretrained` of transformers; `big_vision` writes
        npz.
      file: A path that does not exist.

    Returns:
      A report for the command line: which keys were written, which components were not, and at the
      end, from the line after `load with:` on, the Python program that loads the file.

    Raises:
      UserError: The run cannot be read, the target cannot represent it, or `file` exists.
    """
    if in_bucket(file):
        raise UserError(f"{file} is in a bucket. Expected a new {_kind(target)} on a disk.")
    if file.exists():
        raise UserError(f"{file} exists. Expected a new {_kind(target)}.")
    workdir.check_folder(file.absolute().parent)
    trained = workdir.load_run(path)
    encoder = trained.objective.networks.encoder
    _check_target(encoder, target, path)
    if target == "huggingface":
        model = huggingface_model(trained, path)
        arrays, written = model.arrays, model.written
        program = f"import transformers\nmodel = {model.load.replace('FOLDER', repr(str(file)))}"
    else:
        head = trained.params["head"] if isinstance(trained.objective, Classification) else None
        arrays = to_pytorch(encoder, trained.params["encoder"], head)
        written = {"encoder"} if head is None else {"encoder", "head"}
        num_classes = 0 if head is None else head["linear"]["bias"].shape[0]
    if target == "timm":
        arrays = _timm_names(arrays)
        program = _timm_program(encoder, num_classes, file)
    elif target == "big_vision":
        arrays = big_vision_names.from_pytorch(arrays, encoder.heads)
        program = _big_vision_program(encoder, num_classes, file)
    # safetensors ignores strides.
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}

    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with naming(file):
            if target == "timm":
                metadata = {name: str(getattr(encoder, name)) for name in METADATA}
                metadata |= {name: stored_text(getattr(encoder, name)) for name in SIZES}
                partial.write_bytes(save(arrays, {"format": "pt"} | metadata))
            elif target == "huggingface":
                write_folder(partial, arrays, model)
            else:
                with partial.open("wb") as stream:
                    np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(partial, file)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
    left_out = sorted(set(trained.params) - written)
    return "\n".join(
        [
            f"written ({len(arrays)} keys):",
            *(f"  {line}" for line in grouped(arrays)),
            f"left out: {', '.join(left_out) or 'nothing'}",
            *_warnings(target, encoder, arrays),
            "load with:",
            program,
        ]
    )


def _kind(target: Target) -> str:
    return "folder" if target == "huggingface" else "file"


def _check_target(encoder: ViT, target: Target, path: str | Path) -> None:
    if target != "timm" and not encoder.final_norm:
        raise UserError(
            f"{path} is a classifier of the mean patch token. Expected one of the class token, "
            f"because the ViT of {target} has no norm after the mean: use --to timm."
        )
    for name, only in ABSENT[target].items():
        if (found := getattr(encoder, name)) != only:
            raise UserError(
                f"{path} has encoder.{name}={found!r}. Expected a plain ViT: without, the ViT of "
                f"{target} would compute other features."
            )


def _timm_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with timm's names.

    With registers timm adds no position to the class token (`no_embed_class`), so that it is added
    to the token itself.
    """
    found = dict(arrays)
    if "register_tokens" in found:
        found["reg_token"] = found.pop("register_tokens")
        if "cls_token" in found:
            found["cls_token"] = found["cls_token"] + found["pos_embed"][:, :1]
            found["pos_embed"] = found["pos_embed"][:, 1:]
    return found


def _timm_program(encoder: ViT, num_classes: int, file: Path) -> str:
    """Return the program that loads `file` into timm's model; 0 classes: without a head."""
    fields: dict[str, Any] = {
        "img_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.heads,
        "num_classes": num_classes,
    }
    if encoder.channels != 3:
        fields["in_chans"] = encoder.channels
    if encoder.layer_scale is not None:
        fields["init_values"] = 1.0
    if encoder.registers:
        fields |= {"reg_tokens": encoder.registers, "no_embed_class": True}
    if not encoder.class_token:
        fields["class_token"] = False
    pool = "'token'" if encoder.final_norm and encoder.class_token else "'avg'"
    shown = ", ".join(f"{name}={value}" for name, value in fields.items())
    fc_norm = f", fc_norm={not encoder.final_norm}" if pool == "'avg'" else ""
    strict = ", strict=False" if encoder.mask_token else ""  # it has no mask_token
    return (
        "import safetensors.torch, timm\n"
        f"model = timm.models.VisionTransformer({shown}, global_pool={pool}{fc_norm})\n"
        f"model.load_state_dict(safetensors.torch.load_file({str(file)!r}){strict})"
    )


def _big_vision_program(encoder: ViT, num_classes: int, file: Path) -> str:
    """Return the program that makes big_vision's model and loads its parameters from `file`."""
    pool = "tok" if encoder.class_token else "gap"
    patch = encoder.patch_size
    return (
        "from big_vision.models import vit\n"
        f"model = vit.Model(num_classes={num_classes or None}, patch_size=({patch}, {patch}), "
        f"width={encoder.width}, depth={encoder.depth}, num_heads={encoder.heads}, "
        f"pool_type={pool!r})\n"
        f"params = vit.load(None, {str(file)!r}, None)"
    )


def _warnings(target: Target, encoder: ViT, arrays: Mapping[str, np.ndarray]) -> list[str]:
    found = [
        f"warning: encoder.{name} is {getattr(encoder, name)}, but {target} assumes {usual}: "
        "configure the library that reads the file"
        for name, usual in ASSUMED[target].items()
        if getattr(encoder, name) != usual
    ]
    if encoder.mask_token and target != "huggingface":
        found.append(f"warning: {target} has no mask_token: remove it, or extend the model")
    elif encoder.mask_token and "embeddings.mask_token" not in arrays:
        found.append("warning: ViTModel has no mask_token: it is left out")
    return found
