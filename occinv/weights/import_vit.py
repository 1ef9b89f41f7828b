"""Reads a ViT from a checkpoint: its parameters, and a config that describes it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from occinv import schema
from occinv.models import vit
from occinv.models.position import sincos
from occinv.schema import UserError
from occinv.weights import Origin
from occinv.weights.checkpoint_file import Contents
from occinv.weights.encoder_only import ENCODER_ONLY
from occinv.weights.find_vit import find_vit
from occinv.weights.import_report import IMAGES, ImportedRun, ImportReport, grouped
from occinv.weights.pytorch_names import ArrayReader, Tree

IMAGE_SIZE = 224  # of a checkpoint that does not state it
OTHER_HEADS = {("mocov3", 384): 12}  # other ViT-S have 6 heads
UNSUPPORTED = {  # parts that our ViT does not have and that change the features
    r"reg_token|register_token": "register tokens",
    r"dist_token|head_dist": "a distillation token",
    r"\.ls[12]\.|gamma_?[12]$|lambda_?[12]$": "layer scale",
    r"relative_position|rel_pos": "a relative position bias",
    r"norm_pre": "a norm before the blocks",
    r"[qk]_norm\.": "norms of queries and keys",
    r"attn_pool|MAPHead": "attention pooling",
}
AFTER_ENCODER = {  # parts that are not imported
    r"^pre_logits|^fc\.": "a layer before the head, which our classifiers do not have",
    r"^(head|heads|projector|predictor)[./]": "not a linear classifier of these features",
    r"^fc_norm\.": "the norm of a classifier that the file does not have",
    r"^mask_token$": "the mask token of a decoder or objective that the file does not have",
    r"^decoder_": "part of a decoder without its first layer",
}


@dataclasses.dataclass(frozen=True)
class ViTOptions:
    """Settings that files may lack. None: as in the file, or as usual for the width or origin."""

    heads: int | None = None
    decoder_heads: int | None = None
    pixel_range: vit.PixelRange | None = None


class Sizes(NamedTuple):
    """Width of the ViT, pixels a side of a patch, and patches a side of an image."""

    width: int
    patch_size: int
    side: int


def read_vit(
    contents: Contents, origin: Origin, options: ViTOptions, report: ImportReport
) -> ImportedRun:
    """Return a run with the objective that the parameters allow, and report every key.

    The objective is `mae` if the file has a decoder, `classification` if it has a linear
    classifier, and `EncoderOnly` otherwise.

    Raises:
      UserError: The file has no ViT of this origin, or our ViT would compute other features.
    """
    found = find_vit(contents.tree, origin, report)
    if unsupported := _search(UNSUPPORTED, found.arrays):
        keys = grouped(found.arrays[name].key for name in unsupported)
        what = " and ".join(dict.fromkeys(unsupported.values()))
        raise UserError(
            f"the ViT has {what} ({', '.join(keys[:8])}). Expected a plain ViT: without, ours "
            "would compute other features."
        )
    if "cls_token" not in found.arrays:
        raise UserError("the ViT has no class token. Expected cls_token or cls.")
    reader = ArrayReader(found.arrays, report)
    sizes = _sizes(reader, contents.metadata)
    width, patch_size, side = sizes
    section = {
        "name": next((name for name, size in vit.SIZES.items() if size[0] == width), "base"),
        "patch_size": patch_size,
        "width": width,
        "depth": reader.depth("blocks"),
        **_fields(contents.metadata, found.heads, options, origin, width, report),
    }
    encoder = {
        "patch_embed": reader.layer("patch_embed.proj", width, 3, patch_size, patch_size),
        "class_token": reader.take("cls_token", 1, 1, width)[0, 0],
        "position": _position(reader, "pos_embed", width, side, origin),
        "blocks": reader.blocks("blocks", width),
    }
    params: dict[str, Tree] = {"encoder": encoder}
    num_classes = 0
    if "decoder_embed.weight" in reader:
        encoder["norm"] = reader.layer("norm", width)
        params["decoder"], objective = _decoder(reader, sizes, options.decoder_heads)
    elif pooling := _pooling(reader, width):
        num_classes = reader.shape("head.weight")[0]
        head = params["head"] = {"linear": reader.layer("head", num_classes, width)}
        owner, name = (head, "fc_norm") if pooling == "mean" else (encoder, "norm")
        owner["norm"] = reader.layer(name, width)
        objective = {"name": "classification", "pooling": pooling}
    else:
        objective = {"name": ENCODER_ONLY, **_optional_parts(reader, encoder, width)}
    _ignore_the_rest(reader)

    report.notes.append(
        f"{objective['name']}: width {width}, depth {section['depth']}, patches of {patch_size} "
        f"pixels, images of {side * patch_size}; data.source is {IMAGES} (assumed)"
    )
    data = {"source": IMAGES, "image_size": side * patch_size}
    experiment = schema.resolve({"objective": objective, "data": data, "encoder": section})
    return ImportedRun(experiment, params, tuple(map(str, range(num_classes))))


def _search(table: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return name -> value for each name that contains a regular expression of `table`."""
    return {n: value for n in names for regex, value in table.items() if re.search(regex, n)}


def _sizes(reader: ArrayReader, metadata: Mapping[str, str]) -> Sizes:
    shape = reader.shape("patch_embed.proj.weight")
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[2]:
        raise UserError(
            f"the patch embedding has shape {list(shape)} in PyTorch's layout. Expected "
            "[width, 3, p, p]: square patches of RGB."
        )
    width, patch_size = shape[0], shape[2]
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in reader:
            shape = reader.shape(name)
            if len(shape) != 3 or shape[0] != 1:
                raise UserError(f"{name} has shape {list(shape)}. Expected [1, 1 + N, width].")
            return Sizes(width, patch_size, _grid(shape[1], name)[0])
    size = _number(metadata, "image_size") or IMAGE_SIZE
    if size % patch_size:
        raise UserError(
            f"image_size {size} is not divisible by patches of {patch_size} pixels. Expected a "
            "multiple."
        )
    reader.report.notes.append(f"data.image_size: {size} (the file has no position embedding)")
    return Sizes(width, patch_size, size // patch_size)


def _grid(rows: int, name: str) -> tuple[int, bool]:
    """Return patches a side of a position embedding, and whether the class token has a row."""
    for has_class, count in ((True, rows - 1), (False, rows)):
        side = round(max(count, 0) ** 0.5)
        if side and side**2 == count:
            return side, has_class
    raise UserError(
        f"{name} has {rows} rows. Expected a square number, or one more for the class token: only "
        "square images are supported."
    )


def _position(reader: ArrayReader, name: str, width: int, side: int, origin: str) -> np.ndarray:
    """Return a position embedding [1 + N, D]: of the file, or the fixed table of the origin."""
    if name in reader:
        rows = math.prod(reader.shape(name)[:-1])
        value = reader.take(name, 1, rows, width)[0]
        found, has_class = _grid(rows, name)
        if found != side:
            raise UserError(f"{name} has {rows} rows. Expected {side}² or one more, as pos_embed.")
        if has_class:
            return value
        reader.report.missing[f"the class token's row of {name}"] = "zeros"
        return np.concatenate([np.zeros((1, width), np.float32), value])
    if origin not in SINCOS_TABLES or width % 4 or width < 8:
        raise UserError(
            f"{name} is missing. Expected a learned position embedding from {origin}: rotary and "
            "other positions are not supported."
        )
    reader.report.missing[name] = f"the sine-cosine table of {origin}"
    return SINCOS_TABLES[origin](side, width)


def _fields(
    metadata: Mapping[str, str],
    heads: int | None,
    options: ViTOptions,
    origin: str,
    width: int,
    report: ImportReport,
) -> dict[str, Any]:
    """Return the config fields that arrays may not show; `heads` is what their shapes show."""
    known, given = heads or _number(metadata, "heads"), options.heads
    if known and given not in (None, known):
        raise UserError(f"--heads {given}, but the file says {known}. Leave --heads out.")
    usual = OTHER_HEADS.get((origin, width))
    usual = usual or next((size[2] for size in vit.SIZES.values() if size[0] == width), None)
    usual = usual or (width // 64 if width % 64 == 0 else None)
    gelu, pixel_range = ("tanh", "half") if origin == "big_vision" else ("erf", "imagenet")
    stored, by_width, by_origin = "from the file", f"usual for width {width}", f"usual for {origin}"
    candidates = {
        "heads": ((known, stored), (given, "given"), (usual, by_width)),
        "gelu": ((metadata.get("gelu"), stored), (gelu, by_origin)),
        "pixel_range": (
            (options.pixel_range, "given"),
            (metadata.get("pixel_range"), stored),
            (pixel_range, by_origin),
        ),
    }
    return {name: _choose(report, f"encoder.{name}", *each) for name, each in candidates.items()}


def _choose(report: ImportReport, field: str, *candidates: tuple[Any, str]) -> Any:
    """Return the first value that is not None, and note where it is from."""
    for value, why in candidates:
        if value is not None:
            report.notes.append(f"{field}: {value} ({why})")
            return value
    flag = field.rpartition(".")[2].replace("_", "-")
    raise UserError(f"cannot infer {field}: no value is {candidates[-1][1]}. Pass --{flag}.")


def _number(metadata: Mapping[str, str], name: str) -> int | None:
    if name not in metadata:
        return None
    if not metadata[name].isdecimal() or int(metadata[name]) < 1:
        raise UserError(f"the metadata has {name}={metadata[name]!r}. Expected 1 or more.")
    return int(metadata[name])


def _decoder(reader: ArrayReader, sizes: Sizes, given: int | None) -> tuple[Tree, dict[str, Any]]:
    """Return the parameters of MAE's decoder, and the config section `objective`."""
    own = reader.shape("decoder_embed.weight")[0]
    usual = own // 32 if own and own % 32 == 0 else None
    candidates = (given, "given"), (usual, f"usual for width {own}")
    heads = _choose(reader.report, "objective.decoder_heads", *candidates)
    if own % heads:
        raise UserError(f"--decoder-heads {heads} does not divide the decoder's width {own}.")
    depth = reader.depth("decoder_blocks")
    params = {
        "embed": reader.layer("decoder_embed", own, sizes.width),
        "mask_token": reader.take("mask_token", 1, 1, own)[0, 0],
        "position": _position(reader, "decoder_pos_embed", own, sizes.side, "mae"),
        "blocks": reader.blocks("decoder_blocks", own),
        "norm": reader.layer("decoder_norm", own),
        "predict": reader.layer("decoder_pred", 3 * sizes.patch_size**2, own),
    }
    section = {"decoder_width": own, "decoder_depth": depth, "decoder_heads": heads}
    return params, {"name": "mae", **section}


def _pooling(reader: ArrayReader, width: int) -> str | None:
    """Return how a linear classifier pools, by which norm it has; None: no such classifier.

    models_vit.py deletes the norm of the encoder if the head has one after the mean.
    """
    shape = reader.shape("head.weight") if "head.weight" in reader else ()
    if len(shape) != 2 or shape[0] < 2 or shape[1] != width or "head.bias" not in reader:
        return None
    if any(name.startswith("pre_logits") for name in reader.arrays):
        return None
    norms = ("norm.weight" in reader, "fc_norm.weight" in reader)
    return {(True, False): "class", (False, True): "mean"}.get(norms)


def _optional_parts(reader: ArrayReader, encoder: Tree, width: int) -> dict[str, bool]:
    """Add the last norm and the mask token to `encoder`; return the fields of `EncoderOnly`."""
    final_norm = "norm.weight" in reader
    if final_norm:
        encoder["norm"] = reader.layer("norm", width)
    else:
        reader.report.missing["norm"] = "no norm of the features"
    mask_token = "mask_token" in reader and reader.shape("mask_token") == (1, 1, width)
    if mask_token:
        encoder["mask_token"] = reader.take("mask_token", 1, 1, width)[0, 0]
    return {"mask_token": mask_token, "final_norm": final_norm}


def _ignore_the_rest(reader: ArrayReader) -> None:
    """Report the remaining keys as ignored. Raises UserError for a key without a known reason."""
    reasons = _search(AFTER_ENCODER, reader.arrays)
    reader.report.ignored |= {reader.arrays[name].key: why for name, why in reasons.items()}
    unknown = grouped(array.key for name, array in reader.arrays.items() if name not in reasons)
    if unknown:
        raise UserError(
            f"{len(unknown)} unknown keys: {', '.join(unknown[:8])}. Expected a plain ViT, which "
            "has no such parameters."
        )


def moco_sincos(side: int, width: int) -> np.ndarray:
    """Compute MoCo v3's table (`vits.py`), float32 [1 + side², width].

    It encodes the row in the first half of the channels, MAE's in the second.
    """
    return np.roll(sincos(side, width), width // 2, axis=1)


def big_vision_sincos(side: int, width: int) -> np.ndarray:
    """Compute big_vision's table (`posemb_sincos_2d`), float32 [1 + side², width].

    It differs from MAE's in the frequencies: the last is 1 / 10000 exactly. The class token has a
    row of zeros. `width` is a multiple of 4, and at least 8.
    """
    frequency = 10000.0 ** -np.linspace(0, 1, width // 4)
    angle = np.arange(side)[:, None] * frequency
    line = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    column, row = np.tile(line, (side, 1)), np.repeat(line, side, axis=0)
    grid = np.concatenate([column, row], axis=1)
    return np.concatenate([np.zeros((1, width)), grid]).astype(np.float32)


SINCOS_TABLES = {"mae": sincos, "mocov3": moco_sincos, "big_vision": big_vision_sincos}
