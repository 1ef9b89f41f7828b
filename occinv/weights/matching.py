"""Which keys of a checkpoint are the ViT's, by its origin.

What comes out has the names of the official PyTorch code (timm's): `blocks.0.attn.qkv.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from occinv.schema import UserError
from occinv.weights import Origin, big_vision
from occinv.weights.listing import Listing
from occinv.weights.stored import Stored

# Under which key of a checkpoint the parameters are; without any of them they are the checkpoint.
WRAPPERS: dict[Origin, tuple[str, ...]] = {
    "mae": ("model",),
    "mocov3": ("state_dict",),
    "dino": ("teacher",),  # what eval_linear.py and eval_knn.py take unless told otherwise
    "timm": ("state_dict_ema", "model_ema", "state_dict", "model"),
    "big_vision": (),
}
AROUND_ALL = ("module.", "_orig_mod.")  # DistributedDataParallel's, torch.compile's
BACKBONE: dict[str, tuple[str, dict[str, str]]] = {
    # main_lincls.py takes base_encoder.
    "mocov3": (
        "base_encoder.",
        {
            "momentum_encoder.": "the EMA copy of pretraining; base_encoder is what MoCo v3 uses",
            "predictor.": "the predictor of pretraining",
        },
    ),
    "dino": ("backbone.", {"head.": "the head of pretraining"}),
}


class Named(NamedTuple):
    """An array, and the keys of the file that it was made of."""

    value: np.ndarray
    names: tuple[str, ...]


class Selected(NamedTuple):
    """The arrays of a ViT and of what hangs on it, by official name, in PyTorch's layouts."""

    arrays: dict[str, Named]
    heads: int | None  # where the shapes tell


def select(tree: Any, origin: Origin, listing: Listing, path: str) -> Selected:
    """The ViT in a checkpoint.

    What belongs to none of it is entered in `listing` as ignored. Raises UserError if there is no
    ViT of this origin.
    """
    state = _state(tree, origin, listing, path)
    if origin == "big_vision":
        stored = big_vision.without_prefix(state, listing)
        if "embedding/kernel" not in stored:
            raise UserError(_not_found("embedding/kernel", origin, state, path))
        arrays = {k: (full, _float32(full, s, listing, path)) for k, (full, s) in stored.items()}
        official = big_vision.to_official({k: value for k, (_, value) in arrays.items()})
        named = {
            name: Named(value, tuple(arrays[key][0] for key in keys))
            for name, (value, keys) in official.items()
        }
        return Selected(named, big_vision.heads({k: v.shape for k, (_, v) in arrays.items()}))
    backbone = _backbone(state, origin, listing)
    if "patch_embed.proj.weight" not in backbone:
        raise UserError(_not_found("patch_embed.proj.weight", origin, state, path))
    named = {
        name: Named(_float32(full, stored, listing, path), (full,))
        for name, (full, stored) in backbone.items()
    }
    return Selected(named, None)


def _state(tree: Any, origin: Origin, listing: Listing, path: str) -> dict[str, Stored]:
    """The mapping of names to arrays, wherever in the checkpoint it is."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{path} holds {type(tree).__name__}, expected arrays by name")
    for wrapper in (*WRAPPERS[origin], "model", "state_dict"):
        if isinstance(tree.get(wrapper), Mapping):
            for name in tree:
                if name != wrapper:
                    listing.ignored[ascii(name).strip("'")] = (
                        f"beside {wrapper!r}, where the weights are"
                    )
            tree = tree[wrapper]
            break
    state = {}
    for name, value in tree.items():
        if not str(name).isprintable():
            raise UserError(f"{path} has a key {str(name)[:80]!r}, expected printable names")
        if isinstance(name, str) and isinstance(value, Stored):
            state[name] = value
        else:
            listing.ignored[str(name)] = "not an array"
    if not state:
        found = ", ".join(map(str, list(tree)[:5])) or "nothing"
        raise UserError(f"{path} has no arrays by name, only {found}")
    return state


def _backbone(
    state: Mapping[str, Stored], origin: str, listing: Listing
) -> dict[str, tuple[str, Stored]]:
    """Official name -> (key in the file, array), without prefixes and without other networks."""
    short = {name: name for name in state}
    while prefix := next((p for p in AROUND_ALL if all(n.startswith(p) for n in short)), None):
        short = {name.removeprefix(prefix): full for name, full in short.items()}
    own, others = BACKBONE.get(origin, ("", {}))
    if own and any(name.startswith(own) for name in short):
        for name, full in short.items():
            if not name.startswith(own):
                reason = next((r for p, r in others.items() if name.startswith(p)), None)
                listing.ignored[full] = reason or f"not of {own.rstrip('.')}"
        short = {n.removeprefix(own): full for n, full in short.items() if n.startswith(own)}
    return {name: (full, state[full]) for name, full in short.items()}


def _float32(name: str, stored: Stored, listing: Listing, path: str) -> np.ndarray:
    value = stored.array(f"{name} of {path}")
    if value.dtype.kind not in "fiub" and value.dtype != jnp.bfloat16:
        raise UserError(f"{name} of {path} is {value.dtype}, expected real numbers")
    note = f"{value.dtype} arrays are read as float32"
    if value.dtype != np.float32 and value.dtype.kind not in "iub" and note not in listing.notes:
        listing.notes.append(note)
    return value.astype(np.float32, copy=False)


def _not_found(expected: str, origin: str, state: Iterable[str], path: str) -> str:
    names = list(state)
    hint = ""
    if any(name.endswith("embedding/kernel") for name in names):
        hint = "; it looks like --from big_vision"
    elif any(name.endswith("base_encoder.patch_embed.proj.weight") for name in names):
        hint = "; it looks like --from mocov3"
    elif any(name.endswith("backbone.patch_embed.proj.weight") for name in names):
        hint = "; it looks like --from dino"
    elif any(name.endswith("patch_embed.proj.weight") for name in names):
        hint = "; it looks like --from timm, mae or another PyTorch ViT"
    first = ", ".join(names[:3])
    return f"{path} has no {expected}, expected in a ViT --from {origin} (found {first}, …){hint}"
