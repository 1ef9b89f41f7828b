"""Finds a ViT in a checkpoint: where its parameters are, their names, and which code wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from occinv.schema import UserError
from occinv.weights import Origin, big_vision_names
from occinv.weights.grids import fixed_table
from occinv.weights.import_report import ImportReport
from occinv.weights.library_names import OWN, PATCH_EMBED, Style, to_pytorch_names
from occinv.weights.pytorch_names import SourceArray

STYLES: dict[str, Style] = {
    "huggingface": "huggingface",
    "mmpretrain": "mmpretrain",
    "big_vision": "big_vision",
}
MAX_DEPTH = 3  # of mappings in a checkpoint
# A file may have several copies of a ViT. The words are parts of their keys.
TEACHER = {"teacher", "ema", "target"}
EVALUATED = {"base"}  # MoCo v3 evaluates base_encoder
STUDENT = {"student", "momentum", "online"}
OUTSIDE = {  # start of a key outside of the encoder, after the common prefix
    "momentum_encoder.": "the EMA copy of pretraining; MoCo v3 evaluates base_encoder",
    "predictor.": "the predictor of pretraining",
    "head.": "the head of pretraining",
}


class Place(NamedTuple):
    """A place in a checkpoint that has the patch embedding of a ViT.

    Attributes:
      path: The keys of the mapping that holds the arrays.
      prefix: The start of the keys of its arrays.
      style: The names.
    """

    path: tuple[str, ...]
    prefix: str
    style: Style

    def __str__(self) -> str:
        """Return the place as `--prefix` takes it; it is empty for a file with one plain ViT."""
        return ".".join([*self.path, self.prefix]) if self.path else self.prefix

    @property
    def words(self) -> set[str]:
        """The parts of its keys."""
        return set(re.split(r"[._/]", str(self)))

    @property
    def rank(self) -> int:
        """0 for what is evaluated, 2 for its counterpart in training, 1 for others."""
        return 0 if self.words & {*TEACHER, *EVALUATED} else 2 if self.words & STUDENT else 1


class FoundViT(NamedTuple):
    """The parameters of a ViT and of its decoder or head.

    Attributes:
      arrays: Arrays by the names of MAE and timm, in the layouts of PyTorch.
      origin: The code that wrote them; never `auto`.
      heads: The number of attention heads, if shapes show it.
    """

    arrays: dict[str, SourceArray]
    origin: Origin
    heads: int | None


def find_vit(tree: Any, origin: Origin, prefix: str | None, report: ImportReport) -> FoundViT:
    """Find the ViT in the contents of a checkpoint, and report ignored keys.

    Args:
      tree: The contents.
      origin: The code that wrote them, or `auto`.
      prefix: The start of the keys of the ViT, if there are several.
      report: Gets ignored keys and the choice of the ViT.

    Raises:
      UserError: The checkpoint has no ViT of this origin, or none at `prefix`.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"the file holds a {type(tree).__name__}. Expected arrays by name.")
    places = list(dict.fromkeys(_places(tree, (), set())))
    if not places:
        _refuse(tree)
    if bad := next((place for place in places if not str(place).isprintable()), None):
        raise UserError(f"the key {str(bad)[:80]!r} cannot be printed. Rename it.")
    place = _choose(places, prefix, report)
    if origin != "auto" and place.style != STYLES.get(origin, "pytorch"):
        others = [name for name, style in STYLES.items() if style == place.style]
        raise UserError(
            f"the names are not those of --from {origin}: found {place.prefix}"
            f"{PATCH_EMBED[place.style]}. Use --from {(others or ['auto'])[0]}."
        )
    state = _state(tree, place, report)
    keys = _names(state, place, report)
    arrays = {name: SourceArray(state[key], key) for name, key in keys.items()}
    heads = None
    if place.style == "big_vision":
        heads = big_vision_names.count_heads(arrays)
        arrays = big_vision_names.to_pytorch(arrays)
    if origin == "auto":
        origin = _recognize(tree, place, arrays)
        report.notes.append(f"--from {origin} (recognized)")
    return FoundViT(arrays, origin, heads)


def _places(tree: Mapping[Any, Any], path: tuple[str, ...], seen: set[int]) -> Iterator[Place]:
    """Yield every place in nested mappings that has a patch embedding; `seen` has their ids."""
    if id(tree) in seen:
        return
    seen.add(id(tree))
    for name, value in tree.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Mapping) and len(path) < MAX_DEPTH:
            yield from _places(value, (*path, name), seen)
        for style, end in PATCH_EMBED.items():
            start = name.removesuffix(end)
            if isinstance(value, np.ndarray) and start != name and (not start or start[-1] in "./"):
                own = re.search(f"{OWN[style]}$", start) if style in OWN else None
                yield Place(path, start[: own.start()] if own else start, style)


def _refuse(tree: Mapping[Any, Any]) -> None:
    names = [name for name in tree if isinstance(name, str)]
    if bad := next((name for name in names if not name.isprintable()), None):
        raise UserError(f"the key {bad[:80]!r} cannot be printed. Rename it.")
    inside = next((value for value in tree.values() if isinstance(value, Mapping)), {})
    names += [name for name in inside if isinstance(name, str)]
    if any("transformer.resblocks." in name for name in names):
        raise UserError(
            "the ViT is one of CLIP or OpenCLIP: it has a norm before the blocks (ln_pre), which "
            "our ViT lacks. Expected a plain ViT."
        )
    if "blocks.input.w" in names:
        raise UserError("the file is the encoder of DALL·E. Expected a ViT: use --from dalle.")
    found = ", ".join(ascii(name)[1:-1][:60] for name in names[:3]) or "no arrays by name"
    raise UserError(
        f"the file has no patch embedding of a ViT (found {found}, …). Expected a key that ends in "
        f"{', '.join(PATCH_EMBED.values())}."
    )


def _choose(places: list[Place], prefix: str | None, report: ImportReport) -> Place:
    """Return the place at `prefix`, or of a teacher or average rather than of a student."""
    shown = ", ".join(str(place) or "no prefix" for place in places[:6])
    if prefix is not None:
        given = prefix.rstrip("./")
        fitting = [p for p in places if f"{p}.".startswith(f"{given}.") or str(p) == prefix]
        if not fitting:
            raise UserError(f"--prefix {prefix} has no ViT. Expected one of: {shown}.")
    else:
        fitting = places
    best = min(place.rank for place in fitting)
    chosen, *same = [place for place in fitting if place.rank == best]
    if same:
        raise UserError(f"the file has {len(places)} ViTs: {shown}. Choose one by --prefix.")
    others = [str(place) or "''" for place in places if place != chosen]
    if others:
        role = " (the teacher or average)" if chosen.words & TEACHER else ""
        role = " (the student)" if not role and chosen.words & STUDENT else role
        report.notes.append(
            f"took {str(chosen) or 'the ViT without prefix'}{role}; take another with --prefix "
            + " or --prefix ".join(others[:6])
        )
    return chosen


def _state(tree: Mapping[Any, Any], place: Place, report: ImportReport) -> dict[str, Any]:
    """Return the arrays by key in the mapping of `place`."""
    for wrapper in place.path:
        reason = f"not in {wrapper!a}, which holds the weights"
        report.ignored |= {_shown(name): reason for name in tree if name != wrapper}
        tree = tree[wrapper]
    state = {}
    for name, value in tree.items():
        if isinstance(name, str) and not name.isprintable():
            raise UserError(f"the key {name[:80]!r} cannot be printed. Rename it.")
        if isinstance(name, str) and isinstance(value, np.ndarray):
            state[name] = value
        else:
            report.ignored[_shown(name)] = "not an array"
    return state


def _shown(name: Any) -> str:
    return ascii(name)[1:-1] if isinstance(name, str) else str(name)[:80]


def _names(state: Mapping[str, Any], place: Place, report: ImportReport) -> dict[str, str]:
    """Return name -> key of the arrays at the prefix, with the names of PyTorch or big_vision."""
    common = re.sub(r"(\w+\.)$", "", place.prefix)
    for key in state:
        if not key.startswith(place.prefix):
            outside = key.removeprefix(common)
            reasons = (why for start, why in OUTSIDE.items() if outside.startswith(start))
            report.ignored[key] = next(reasons, f"not part of {place.prefix.rstrip('./')}")
    inside = {key.removeprefix(place.prefix): key for key in state if key.startswith(place.prefix)}
    return to_pytorch_names(inside, place.style)


def _recognize(tree: Mapping[Any, Any], place: Place, arrays: Mapping[str, SourceArray]) -> Origin:
    """Return the code that wrote a checkpoint, by its names and by what only it stores."""
    for origin, style in STYLES.items():
        if style == place.style:
            return origin  # type: ignore[return-value]
    names = " ".join(arrays)
    if "base_encoder." in place.prefix or "momentum_encoder." in place.prefix:
        return "mocov3"
    if "target_encoder" in tree:
        return "ijepa"
    if "decoder_embed.weight" in arrays:
        return "mae"
    if "relative_position_bias_table" in names or ".q_bias" in names:
        return "beit"
    if "mask_token" in arrays and arrays["mask_token"].value.ndim == 2 and ".ls1." in names:
        return "dinov2"
    if isinstance(tree.get("teacher"), Mapping) and "student" in tree:
        return "dino"
    position = arrays.get("pos_embed")
    if position is not None and position.value.ndim == 3:
        return fixed_table(position.value[0].astype(float)) or "timm"  # type: ignore[return-value]
    return "timm"
