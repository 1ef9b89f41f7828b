"""The encoder of a workdir, and its classifier, as a file for other libraries."""

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
from occinv.weights import Target, big_vision
from occinv.weights.listing import grouped
from occinv.weights.translation import to_official

ASSUMED = {  # what a reader of the format takes for granted
    "timm": {"gelu": "erf", "pixel_range": "imagenet"},
    "big_vision": {"gelu": "tanh", "pixel_range": "half"},
}


def export_weights(path: str | Path, target: Target, file: Path) -> str:
    """Writes the encoder of a run, and the head of a classifier, under another library's names.

    timm: safetensors, with sizes, GELU and pixel range in the metadata. big_vision: npz.

    Args:
      path: a workdir or one of its checkpoints.
      file: must not exist.

    Returns:
      What was written and what was left out, in words.

    Raises:
      UserError: the run cannot be read, the format has no place for it, or `file` is there.
    """
    if file.exists():
        raise UserError(f"{file} exists, expected a new file")
    workdir.check_folder(file.absolute().parent)
    trained = workdir.load_run(path)
    encoder = trained.objective.encoder
    head = trained.params["head"] if isinstance(trained.objective, Classification) else None
    if target == "big_vision" and not encoder.final_norm:
        raise UserError(
            f"{path}: big_vision has no place for a norm after the mean of the patch tokens, "
            "expected a classifier of the class token; use --to timm"
        )
    for name in ("relative_position", "layer_scale"):
        if getattr(encoder, name) is not None:
            raise UserError(
                f"{path} has encoder.{name}={getattr(encoder, name)!r}, expected a plain ViT: the "
                f"ViT of {target} would compute other features without"
            )
    arrays = to_official(trained.params["encoder"], head)
    if target == "big_vision":
        arrays = big_vision.from_official(arrays, encoder.heads)
    # Both writers take memory as it lies.
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}

    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        if target == "timm":
            save_file(arrays, beside, _metadata(encoder))
        else:
            with beside.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(beside, file)
    finally:
        beside.unlink(missing_ok=True)
    left = sorted(set(trained.params) - {"encoder"} - ({"head"} if head is not None else set()))
    return "\n".join(
        [
            f"written ({len(arrays)} keys):",
            *(f"  {line}" for line in grouped(arrays)),
            f"left out: {', '.join(left) or 'nothing'}",
            *_warnings(target, encoder, arrays),
        ]
    )


def _metadata(encoder: ViT) -> dict[str, str]:
    names = ("heads", "image_size", "patch_size", "gelu", "pixel_range")
    return {"format": "pt"} | {name: str(getattr(encoder, name)) for name in names}


def _warnings(target: Target, encoder: ViT, arrays: Mapping[str, np.ndarray]) -> list[str]:
    found = [
        f"warning: encoder.{name} is {getattr(encoder, name)}, but {target} assumes {usual}: tell "
        "the reader of the file"
        for name, usual in ASSUMED[target].items()
        if getattr(encoder, name) != usual
    ]
    if "mask_token" in arrays:
        found.append(f"warning: {target} has no mask_token: tell the reader of the file")
    return found
