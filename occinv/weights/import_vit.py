"""Reads a ViT from a checkpoint: its parameters, and a config that describes it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from occinv import schema
from occinv.models import vit
from occinv.schema import UserError
from occinv.size import Grid, sides, size_text
from occinv.weights import Origin
from occinv.weights.checkpoint_file import Contents
from occinv.weights.encoder_only import ENCODER_ONLY
from occinv.weights.find_vit import find_vit
from occinv.weights.import_position import (
    TABLE,
    Sizes,
    read_number,
    read_position,
    read_sizes,
    registers_name,
    tokens_and_position,
)
from occinv.weights.import_report import IMAGES, ImportedRun, ImportReport, grouped
from occinv.weights.model_config import RANGES
from occinv.weights.pytorch_names import ArrayReader, Tree

OTHER_HEADS = {("mocov3", 384): 12}  # other ViT-S have 6 heads
OFFICIAL_RANGES: dict[str, vit.PixelRange] = {  # of origins whose code leaves no choice
    "mae": "imagenet",
    "mocov3": "imagenet",
    "dino": "imagenet",
    "dinov2": "imagenet",
    "ijepa": "imagenet",
    "beit": "half",
    "big_vision": "half",
}
UNSUPPORTED = {  # parts that our ViT does not have and that change the features
    r"dist(illation)?_token|head_dist": "a distillation token",
    r"rel_pos_[hw]": "decomposed relative positions",
    r"norm_pre|pre_norm|ln_pre": "a norm before the blocks",
    r"[qk]_norm\.": "norms of queries and keys",
    r"mlp\.(w12|w3|weights_(in|out)|fc1_[gx])\.": "SwiGLU MLPs",
}
AFTER_ENCODER = {  # parts that are not imported
    r"^(attn_pool|MAPHead_0|pooler)[./]": "pooling after the encoder, which ours does not have",
    r"relative_position_index$": "computed, not learned",
    r"^(lm_head|cls_pt_layers|neck|decoder)\b": "part of the pretraining",
    r"^pre_logits|^fc\.": "a layer before the head, which our classifiers do not have",
    r"^(head|heads|projector|predictor)[./]": "not a linear classifier of these features",
    r"^fc_norm\.": "the norm of a classifier that the file does not have",
    r"^(mask_token|masked_embed)$": "the mask token of a decoder or objective that is missing",
    r"^decoder_": "part of a decoder without its first layer",
}


@dataclasses.dataclass(frozen=True)
class ViTOptions:
    """Settings that files may lack. None: as in the file, or as usual for the width or origin."""

    heads: int | None = None
    decoder_heads: int | None = None
    pixel_range: vit.PixelRange | None = None
    grid: Grid | None = None
    prefix: str | None = None


def read_vit(
    contents: Contents, origin: Origin, options: ViTOptions, report: ImportReport
) -> ImportedRun:
    """Return a run with the objective that the parameters allow, and report every key.

    The objective is `mae` if the file has a decoder, `classification` if it has a linear
    classifier, and `EncoderOnly` otherwise.

    Raises:
      UserError: The file has no ViT of this origin, or our ViT would compute other features.
    """
    found = find_vit(contents.tree, origin, options.prefix, report)
    origin = found.origin
    if unsupported := _search(UNSUPPORTED, found.arrays):
        keys = grouped(found.arrays[name].key for name in unsupported)
        what = " and ".join(dict.fromkeys(unsupported.values()))
        raise UserError(
            f"the ViT has {what} ({', '.join(keys[:8])}). Expected a plain ViT: without, ours "
            "would compute other features."
        )
    reader = ArrayReader(found.arrays, report)
    sizes = read_sizes(reader, contents.metadata, options.grid, origin)
    width, patch_size = sizes.width, sizes.patch_size
    parts = _parts(reader)
    encoder = {
        "patch_embed": reader.layer("patch_embed.proj", width, sizes.channels, *sides(patch_size)),
        **tokens_and_position(reader, sizes, origin),
    }
    heads = found.heads
    if "relative_position" in encoder:
        heads = encoder["relative_position"].shape[-1]
    section = {
        "name": next((name for name, size in vit.SIZES.items() if size[0] == width), "base"),
        "patch_size": patch_size,
        "width": width,
        "depth": reader.depth("blocks"),
        **parts,
        **_fields(contents.metadata, heads, options, origin, width, report),
    }
    if sizes.channels != 3 and section["pixel_range"] == "imagenet":
        raise UserError(
            f"the ViT reads images of {sizes.channels} channels, but ImageNet's mean and standard "
            "deviation are of RGB. Pass --pixel-range half if it was trained on [-1, 1]."
        )
    encoder["blocks"] = reader.blocks("blocks", width)
    params: dict[str, Tree] = {"encoder": encoder}
    num_classes = 0
    if "decoder_embed.weight" in reader:
        encoder["norm"] = reader.layer("norm", width)
        stored = read_number(contents.metadata, "decoder_heads")
        params["decoder"], objective = _decoder(reader, sizes, options.decoder_heads, stored)
        objective |= _mae_fields(contents.metadata)
    elif pooling := _pooling(reader, width):
        num_classes = reader.shape("head.weight")[0]
        head = params["head"] = {"linear": reader.layer("head", num_classes, width)}
        owner, name = (head, "fc_norm") if pooling == "mean" else (encoder, "norm")
        owner["norm"] = reader.layer(name, width)
        objective = {"name": "classification", "pooling": pooling}
    else:
        objective = {"name": ENCODER_ONLY, **_optional_parts(reader, encoder, width)}
    _ignore_the_rest(reader)

    report.notes += [contents.metadata["note"]] if "note" in contents.metadata else []
    report.notes.append(
        f"{objective['name']}: width {width}, depth {section['depth']}, patches of "
        f"{size_text(patch_size)} pixels, images of {size_text(sizes.image_size)}; data.source is "
        f"{IMAGES} (assumed)"
    )
    data = {"source": IMAGES, "image_size": sizes.image_size, "channels": sizes.channels}
    experiment = schema.resolve({"objective": objective, "data": data, "encoder": section})
    return ImportedRun(experiment, params, tuple(map(str, range(num_classes))))


def _parts(reader: ArrayReader) -> dict[str, Any]:
    """Return the config fields of optional parts of the ViT."""
    fields: dict[str, Any] = {}
    if "cls_token" not in reader:
        fields["class_token"] = False
    if name := registers_name(reader):
        fields["registers"] = reader.shape(name, 3)[1]
    if reader.has_layer_scale:
        fields["layer_scale"] = 1.0  # the initial value, which the file's values replace
    if any(name.endswith(TABLE) for name in reader.arrays):
        fields["relative_position"] = "shared" if f"rel_pos_bias.{TABLE}" in reader else "block"
    return fields


def _search(table: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return name -> value for each name that contains a regular expression of `table`."""
    return {n: value for n in names for regex, value in table.items() if re.search(regex, n)}


def _fields(
    metadata: Mapping[str, str],
    heads: int | None,
    options: ViTOptions,
    origin: str,
    width: int,
    report: ImportReport,
) -> dict[str, Any]:
    """Return the config fields that arrays may not show; `heads` is what their shapes show."""
    known, given = heads or read_number(metadata, "heads"), options.heads
    if known and given not in (None, known):
        raise UserError(f"--heads {given}, but the file says {known}. Leave --heads out.")
    usual = OTHER_HEADS.get((origin, width))
    usual = usual or next((size[2] for size in vit.SIZES.values() if size[0] == width), None)
    usual = usual or (width // 64 if width % 64 == 0 else None)
    gelu = "tanh" if origin == "big_vision" else "erf"
    stored, by_width, by_origin = "from the file", f"usual for width {width}", f"usual for {origin}"
    candidates = {
        "heads": ((known, stored), (given, "given"), (usual, by_width)),
        "gelu": ((metadata.get("gelu"), stored), (gelu, by_origin)),
        "pixel_range": (
            (options.pixel_range, "given"),
            (metadata.get("pixel_range"), stored),
            (OFFICIAL_RANGES.get(origin), by_origin),
        ),
    }
    fields = {name: _choose(report, f"encoder.{name}", *each) for name, each in candidates.items()}
    if fields["pixel_range"] not in RANGES:
        raise UserError(
            f"pixels are normalized by {fields['pixel_range']}. Expected ImageNet's mean and "
            "standard deviation, or 0.5 for both: our ViT has no other."
        )
    return fields


def _choose(report: ImportReport, field: str, *candidates: tuple[Any, str]) -> Any:
    """Return the first value that is not None, and note where it is from."""
    for value, why in candidates:
        if value is not None:
            report.notes.append(f"{field}: {value} ({why})")
            return value
    flag = "--" + field.rpartition(".")[2].replace("_", "-")
    if flag == "--pixel-range":
        raise UserError(
            "the file does not say how pixels are normalized. Pass --pixel-range imagenet (mean "
            "0.485, 0.456, 0.406) or --pixel-range half (mean 0.5)."
        )
    raise UserError(f"cannot infer {field}: no value is {candidates[-1][1]}. Pass {flag}.")


def _decoder(
    reader: ArrayReader, sizes: Sizes, given: int | None, stored: int | None
) -> tuple[Tree, dict[str, Any]]:
    """Return the parameters of MAE's decoder, and the config section `objective`."""
    own = reader.shape("decoder_embed.weight", 2)[0]
    usual = own // 32 if own and own % 32 == 0 else None
    candidates = (given, "given"), (stored, "from the file"), (usual, f"usual for width {own}")
    heads = _choose(reader.report, "objective.decoder_heads", *candidates)
    if own % heads:
        raise UserError(f"--decoder-heads {heads} does not divide the decoder's width {own}.")
    depth = reader.depth("decoder_blocks")
    params = {
        "embed": reader.layer("decoder_embed", own, sizes.width),
        "mask_token": reader.vector("mask_token", own),
        "position": read_position(reader, "decoder_pos_embed", own, sizes.grid, 1, "mae"),
        "blocks": reader.blocks("decoder_blocks", own),
        "norm": reader.layer("decoder_norm", own),
        "predict": reader.layer("decoder_pred", sizes.patch_values, own),
    }
    section = {"decoder_width": own, "decoder_depth": depth, "decoder_heads": heads}
    return params, {"name": "mae", **section}


def _mae_fields(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of MAE's loss that the metadata states."""
    fields: dict[str, Any] = {}
    if "mask_ratio" in metadata:
        fields["mask_ratio"] = float(metadata["mask_ratio"])
    if "normalize_target" in metadata:
        fields["normalize_target"] = metadata["normalize_target"] == "True"
    return fields


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
    shapes = (1, 1, width), (1, width)
    mask_token = "mask_token" in reader and reader.shape("mask_token") in shapes
    if mask_token and not reader.arrays["mask_token"].value.any():
        mask_token = False
        reader.report.ignored[reader.arrays.pop("mask_token").key] = "zeros, so never trained"
    if mask_token:
        encoder["mask_token"] = reader.vector("mask_token", width)
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
