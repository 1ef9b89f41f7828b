"""Exports the encoder of a workdir, and its classifier, to a file for another library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from occinv.models.vit import ViT
from occinv.objectives.classification import Classification
from occinv.schema import UserError
from occinv.train import workdir
from occinv.weights import Target, big_vision_names
from occinv.weights.import_report import grouped
from occinv.weights.pytorch_names import to_pytorch

ASSUMED = {  # by readers of the format
    "timm": {"gelu": "erf", "pixel_range": "imagenet"},
    "big_vision": {"gelu": "tanh", "pixel_range": "half"},
}
METADATA = ("heads", "image_size", "patch_size", "gelu", "pixel_range")


def export_weights(path: str | Path, target: Target, file: Path) -> str:
    """Write the encoder of a run, and the head of a classifier, under another library's names.

    Args:
      path: A workdir or one of its checkpoints.
      target: `timm` writes safetensors, with sizes, GELU and pixel range in the metadata;
        `big_vision` writes npz.
      file: A path that does not exist.

    Returns:
      A report for the command line: which keys were written, and which components were not.

    Raises:
      UserError: The run cannot be read, the target cannot represent it, or `file` exists.
    """
    if file.exists():
        raise UserError(f"{file} exists. Expected a new file.")
    workdir.check_folder(file.absolute().parent)
    trained = workdir.load_run(path)
    encoder = trained.objective.networks.encoder
    head = trained.params["head"] if isinstance(trained.objective, Classification) else None
    _check_target(encoder, target, path)
    arrays = to_pytorch(trained.params["encoder"], head)
    if target == "big_vision":
        arrays = big_vision_names.from_pytorch(arrays, encoder.heads)
    # save_file ignores strides.
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}

    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        if target == "timm":
            metadata = {name: str(getattr(encoder, name)) for name in METADATA}
            save_file(arrays, partial, {"format": "pt"} | metadata)
        else:
            with partial.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    left_out = sorted(set(trained.params) - ({"encoder", "head"} if head else {"encoder"}))
    return "\n".join(
        [
            f"written ({len(arrays)} keys):",
            *(f"  {line}" for line in grouped(arrays)),
            f"left out: {', '.join(left_out) or 'nothing'}",
            *_warnings(target, encoder, arrays),
        ]
    )


def _check_target(encoder: ViT, target: Target, path: str | Path) -> None:
    if target == "big_vision" and not encoder.final_norm:
        raise UserError(
            f"{path} is a classifier of the mean patch token. Expected one of the class token, "
            "because the ViT of big_vision has no norm after the mean: use --to timm."
        )
    for name in ("relative_position", "layer_scale"):
        if getattr(encoder, name) is not None:
            raise UserError(
                f"{path} has encoder.{name}={getattr(encoder, name)!r}. Expected a plain ViT: "
                f"without, the ViT of {target} would compute other features."
            )


def _warnings(target: Target, encoder: ViT, arrays: Mapping[str, np.ndarray]) -> list[str]:
    found = [
        f"warning: encoder.{name} is {getattr(encoder, name)}, but {target} assumes {usual}: "
        "configure the library that reads the file"
        for name, usual in ASSUMED[target].items()
        if getattr(encoder, name) != usual
    ]
    if "mask_token" in arrays:
        found.append(f"warning: {target} has no mask_token: remove it, or extend the model")
    return found
