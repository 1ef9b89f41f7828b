"""A checkpoint of somebody else's, as a workdir of ours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from occinv import schema
from occinv.models import vit
from occinv.models.position import sincos
from occinv.objectives.base import Setting, make_objective
from occinv.objectives.mae import MAE
from occinv.schema import UserError
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.weights import Origin
from occinv.weights.container import open_weights
from occinv.weights.dalle import read_tokenizer
from occinv.weights.fixed_position import FIXED
from occinv.weights.imported import NAME
from occinv.weights.listing import Listing, grouped
from occinv.weights.matching import Named, Selected, select
from occinv.weights.translation import Reader, Tree, grid_of, reasons

IMAGES = "tfds:imagenet2012"  # what nearly every published checkpoint was trained on
IMAGE_SIZE = 224  # of a checkpoint in which nothing tells
OTHER_HEADS = {"mocov3": {384: 12}}  # its ViT-S has 12 heads, everybody else's 6
# What changes the features and our ViT has not; a ViT without it would compute something else.
UNSUPPORTED = (
    (r"reg_token|register_token", "register tokens"),
    (r"dist_token|head_dist", "a distillation token"),
    (r"\.ls[12]\.|gamma_?[12]$|lambda_?[12]$", "layer scale"),
    (r"relative_position|rel_pos", "a relative position bias"),
    (r"norm_pre", "a norm before the blocks"),
    (r"[qk]_norm\.", "norms of queries and keys"),
    (r"attn_pool|MAPHead", "attention pooling"),
)
LEFT_OUT = (  # what comes after the encoder
    (r"^pre_logits|^fc\.", "a layer before the head, which classifiers have none of here"),
    (r"^(head|heads|projector|predictor)[./]", "not a linear classifier of these features"),
    (r"^fc_norm\.", "the norm of a classifier that is not there"),
    (r"^mask_token$", "the mask token of a decoder or objective that is not there"),
    (r"^decoder_", "part of a decoder without its first layer"),
)


def import_weights(
    file: Path,
    origin: Origin,
    to: Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    pixel_range: vit.PixelRange | None = None,
) -> Listing:
    """Makes `to` a workdir with the parameters in `file`, as checkpoint 0 of a run.

    Its objective is `mae` if there is a decoder, `classification` if there is a linear classifier,
    and `EncoderOnly` otherwise; `TokenizerOnly` from `dalle`.

    Args:
      file: PyTorch's, safetensors or npz.
      to: must not exist, or be empty.
      heads, decoder_heads: of attention; None: from the file, or as usual for the width.
      pixel_range: what the encoder wants; None: from the file, or as usual for the origin.

    Returns:
      What was done with every key.

    Raises:
      UserError: the file cannot be read, holds no such ViT, or one that ours cannot be; or `to` is
        in use. Nothing is written then.
    """
    _check_free(to)
    for flag, value in (("--heads", heads), ("--decoder-heads", decoder_heads)):
        if value is not None and value < 1:
            raise UserError(f"{flag} {value}, expected 1 or more")
    listing = Listing()
    about = {"imported": {"file": file.name, "from": origin}}
    if origin == "dalle":
        for flag, given in (("--heads", heads), ("--decoder-heads", decoder_heads),
                            ("--pixel-range", pixel_range)):  # fmt: skip
            if given is not None:
                raise UserError(f"{flag} {given} with --from dalle, expected none: it is no ViT")
        with open_weights(file) as contents:
            tokenizer, section = read_tokenizer(contents.tree, listing, str(file))
        experiment = schema.resolve({"objective": section, "data": {"source": IMAGES}})
        _write(to, experiment, (), tokenizer, about)
        return listing
    with open_weights(file) as contents:
        selected = select(contents.tree, origin, listing, str(file))
    reader = Reader(selected.arrays, listing, str(file))
    _refuse_unsupported(selected.arrays, str(file))

    width, patch_size = _patch_embedding(reader)
    depth = reader.depth("blocks")
    side = _side(reader, contents.metadata, patch_size)
    heads = _heads(heads, width, origin, selected, contents.metadata, listing)
    gelu = contents.metadata.get("gelu", "tanh" if origin == "big_vision" else "erf")
    usual = "half" if origin == "big_vision" else "imagenet"
    known = contents.metadata.get("pixel_range")
    pixels = pixel_range or known or usual
    why = "given" if pixel_range else "from the file" if known else f"usual for {origin}"
    listing.notes.append(f"encoder.gelu: {gelu}; encoder.pixel_range: {pixels} ({why})")

    encoder = {
        "patch_embed": reader.patch_embed(width, patch_size),
        "class_token": reader.take("cls_token", 1, 1, width)[0, 0],
        "position": _position(reader, "pos_embed", width, side, origin),
        "blocks": reader.blocks("blocks", width),
    }
    params: dict[str, Tree] = {"encoder": encoder}
    objective: dict[str, Any]
    classes: tuple[str, ...] = ()
    if "decoder_embed.weight" in reader:
        encoder["norm"] = reader.norm("norm", width)
        params["decoder"], objective = _decoder(
            reader, width, patch_size, side, decoder_heads, listing
        )
    elif pooling := _pooling(reader, width):
        count = reader.shape("head.weight")[0]
        params["head"] = {"linear": reader.dense("head", width, count)}
        if pooling == "mean":
            params["head"]["norm"] = reader.norm("fc_norm", width)
        else:
            encoder["norm"] = reader.norm("norm", width)
        classes = tuple(map(str, range(count)))
        objective = {"name": "classification", "pooling": pooling}
    else:
        objective = {"name": NAME, "mask_token": False, "final_norm": "norm.weight" in reader}
        if objective["final_norm"]:
            encoder["norm"] = reader.norm("norm", width)
        else:
            listing.missing["norm"] = "features pass no last norm"
        if "mask_token" in reader and reader.shape("mask_token") == (1, 1, width):
            encoder["mask_token"] = reader.take("mask_token", 1, 1, width)[0, 0]
            objective["mask_token"] = True
    _settle_the_rest(reader)

    experiment = schema.resolve(
        {
            "objective": objective,
            "data": {"source": IMAGES, "image_size": side * patch_size},
            "encoder": {
                "name": next((n for n, s in vit.SIZES.items() if s[0] == width), "base"),
                "patch_size": patch_size,
                "width": width,
                "depth": depth,
                "heads": heads,
                "gelu": gelu,
                "pixel_range": pixels,
            },
        }
    )
    module = vit.make_vit(experiment.encoder, experiment.data.image_size)
    make_objective(
        experiment.objective, Setting(module, len(classes), total_steps=1)
    )  # is it one of ours?
    listing.notes.append(
        f"{objective['name']}: width {width}, depth {depth}, patches of {patch_size} pixels, "
        f"images of {side * patch_size}; data.source is {IMAGES} (assumed)"
    )
    _write(to, experiment, classes, params, about)
    return listing


def _check_free(to: Path) -> None:
    files.check_folder(to)
    if to.is_dir() and any(to.iterdir()):
        raise UserError(f"--to {to} is not empty, expected a new folder")


def _refuse_unsupported(arrays: Mapping[str, Named], path: str) -> None:
    found = reasons(arrays, UNSUPPORTED)
    if found:
        names = grouped(key for name in found for key in arrays[name].names)
        what = " and ".join(dict.fromkeys(found.values()))
        raise UserError(
            f"{path} has {what} ({', '.join(names[:8])}), expected a plain ViT: this one would "
            "compute other features without"
        )
    if "cls_token" not in arrays:
        raise UserError(f"{path} has no class token (cls_token or cls), expected a ViT with one")


def _patch_embedding(reader: Reader) -> tuple[int, int]:
    """Width, and pixels a side of a patch."""
    shape = reader.shape("patch_embed.proj.weight")
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[2]:
        raise UserError(
            f"the patch embedding of {reader.path} has shape {list(shape)} in PyTorch's order, "
            "expected [width, 3, p, p]: square patches of RGB"
        )
    return shape[0], shape[2]


def _side(reader: Reader, metadata: Mapping[str, str], patch_size: int) -> int:
    """Patches a side of the images that the ViT was made for."""
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in reader:
            shape = reader.shape(name)
            if len(shape) != 3 or shape[0] != 1:
                raise UserError(f"{name} has shape {list(shape)}, expected [1, 1 + N, width]")
            return grid_of(shape[1], name)[0]
    size = _number(metadata, "image_size") or IMAGE_SIZE
    if size % patch_size:
        raise UserError(f"patches of {patch_size} pixels do not divide images of {size}")
    reader.listing.notes.append(f"data.image_size: {size} (nothing in the file tells another)")
    return size // patch_size


def _position(reader: Reader, name: str, width: int, side: int, origin: str) -> np.ndarray:
    """A position embedding [1 + N, D]: the stored one, or the fixed one of the origin."""
    if name in reader:
        rows = reader.shape(name)[1]
        value = reader.take(name, 1, rows, width)[0]
        if grid_of(rows, name) == (side, True):
            return value
        if grid_of(rows, name)[0] == side:
            reader.listing.missing[f"the class token's row of {name}"] = "zeros"
            return np.concatenate([np.zeros((1, width), np.float32), value])
        raise UserError(f"{name} has {rows} rows, expected {side}² or one more, as others have")
    if origin not in FIXED or width % 4 or width < 8:
        raise UserError(
            f"{reader.path} has no {name}, expected one from {origin}: a ViT with rotary or other "
            "positions is not supported"
        )
    called, make = FIXED[origin]
    reader.listing.missing[name] = called
    return make(side, width)


def _heads(
    given: int | None,
    width: int,
    origin: str,
    selected: Selected,
    metadata: Mapping[str, str],
    listing: Listing,
) -> int:
    """Attention heads of the encoder: by shapes or metadata, as given, or as usual."""
    known = selected.heads or _number(metadata, "heads")
    if known and given and known != given:
        raise UserError(f"--heads {given}, but the file says {known}: leave it out")
    usual = OTHER_HEADS.get(origin, {}).get(width)
    usual = usual or next((s[2] for s in vit.SIZES.values() if s[0] == width), None)
    usual = usual or (width // 64 if not width % 64 else None)
    heads = known or given or usual
    if heads is None:
        raise UserError(
            f"nothing tells how many heads a ViT of width {width} has: say it by --heads"
        )
    why = "from the file" if known else "given" if given else f"usual for width {width}: assumed"
    listing.notes.append(f"encoder.heads: {heads} ({why})")
    return heads


def _number(metadata: Mapping[str, str], name: str) -> int | None:
    """A whole number of the metadata, if it is there. Raises UserError if it is none."""
    if name not in metadata:
        return None
    if not metadata[name].isdecimal() or int(metadata[name]) < 1:
        raise UserError(f"the file's metadata says {name}={metadata[name]!r}, expected 1 or more")
    return int(metadata[name])


def _decoder(
    reader: Reader, width: int, patch_size: int, side: int, given: int | None, listing: Listing
) -> tuple[Tree, dict[str, Any]]:
    """Parameters of MAE's decoder, and the section `objective` that has them."""
    own = reader.shape("decoder_embed.weight")[0]
    heads = given or (own // 32 if not own % 32 else None)
    if heads is None or own % heads:
        raise UserError(
            f"a decoder of width {own} with {heads or 'an unknown number of'} heads: say a divisor "
            "of its width by --decoder-heads"
        )
    why = "given" if given else f"width {own} / 32: assumed"
    listing.notes.append(f"objective.decoder_heads: {heads} ({why})")
    depth = reader.depth("decoder_blocks")
    if "decoder_pos_embed" in reader:
        position = _position(reader, "decoder_pos_embed", own, side, "mae")
    else:
        listing.missing["decoder_pos_embed"] = FIXED["mae"][0]
        position = sincos(side, own)
    params = {
        "embed": reader.dense("decoder_embed", width, own),
        "mask_token": reader.take("mask_token", 1, 1, own)[0, 0],
        "position": position,
        "blocks": reader.blocks("decoder_blocks", own),
        "norm": reader.norm("decoder_norm", own),
        "predict": reader.dense("decoder_pred", own, 3 * patch_size**2),
    }
    return params, {
        "name": "mae",
        "mask_ratio": MAE.mask_ratio,
        "normalize_target": MAE.normalize_target,
        "decoder_width": own,
        "decoder_depth": depth,
        "decoder_heads": heads,
    }


def _pooling(reader: Reader, width: int) -> str | None:
    """How the linear classifier pools, by which norm there is; None: there is no such classifier.

    models_vit.py deletes the encoder's own norm where the head has one after the mean.
    """
    if "head.weight" not in reader or "head.bias" not in reader:
        return None
    shape = reader.shape("head.weight")
    if len(shape) != 2 or shape[0] < 2 or shape[1] != width:
        return None
    if any(name.startswith("pre_logits") for name in reader.arrays):
        return None
    norms = ("norm.weight" in reader, "fc_norm.weight" in reader)
    return {(True, False): "class", (False, True): "mean"}.get(norms)


def _settle_the_rest(reader: Reader) -> None:
    """Enters what is left as ignored. Raises UserError for what no reason is known to ignore."""
    for name, reason in reasons(list(reader.arrays), LEFT_OUT).items():
        reader.ignore(name, reason)
    if reader.arrays:
        unknown = grouped(key for named in reader.arrays.values() for key in named.names)
        raise UserError(
            f"{reader.path} has {len(unknown)} keys that no ViT of ours has a place for: "
            f"{', '.join(unknown[:8])}"
        )


def _write(
    to: Path,
    experiment: schema.Experiment,
    classes: tuple[str, ...],
    params: dict[str, Tree],
    metadata: dict[str, Any],
) -> None:
    """All of the workdir, or nothing: it is made beside its place and then moved there."""
    to = to.absolute()
    beside = to.parent / f".{to.name}.{os.getpid()}.tmp"
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        files.claim(beside, experiment, classes)
        with Checkpoints(beside / files.CHECKPOINTS) as checkpoints:
            checkpoints.save(0, {"params": params}, metadata)
        os.replace(beside, to)  # an empty folder gives way
    except OSError as error:
        raise UserError(f"--to {to} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
