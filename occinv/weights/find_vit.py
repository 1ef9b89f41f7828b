"""Finds the parameters of the ViT in a checkpoint, by its origin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from occinv.schema import UserError
from occinv.weights import Origin, big_vision_names
from occinv.weights.import_report import ImportReport
from occinv.weights.pytorch_names import SourceArray

# The entry of a checkpoint that holds the parameters; without one the checkpoint itself holds them.
WRAPPERS: dict[Origin, tuple[str, ...]] = {
    "mocov3": ("state_dict",),
    "dino": ("teacher",),  # the default of eval_linear.py and eval_knn.py
    "timm": ("state_dict_ema", "model_ema", "state_dict"),
}
ANY_WRAPPER = ("model", "state_dict")
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
FLAX_PREFIXES = ("opt/target/", "params/", "")
BACKBONES = {"mocov3": "base_encoder.", "dino": "backbone."}  # main_lincls.py: base_encoder
BESIDE_BACKBONE = {
    "momentum_encoder.": "the EMA copy of pretraining; MoCo v3 evaluates base_encoder",
    "predictor.": "the predictor of pretraining",
    "head.": "the head of pretraining",
}
HINTS = {  # end of a key -> the origin that it suggests
    "embedding/kernel": "big_vision",
    "base_encoder.patch_embed.proj.weight": "mocov3",
    "backbone.patch_embed.proj.weight": "dino",
    "patch_embed.proj.weight": "timm or --from mae",
}


class FoundViT(NamedTuple):
    """The parameters of a ViT and of its decoder or head.

    Attributes:
      arrays: Arrays by PyTorch name, in its layouts.
      heads: The number of attention heads, if shapes show it.
    """

    arrays: dict[str, SourceArray]
    heads: int | None


def find_vit(tree: Any, origin: Origin, report: ImportReport) -> FoundViT:
    """Read the ViT in the contents of a checkpoint as float32, and report ignored keys.

    Raises:
      UserError: The checkpoint has no ViT of this origin, or an array of other than real numbers.
    """
    state = _state_dict(tree, WRAPPERS.get(origin, ()), report)
    if origin == "big_vision":
        keys, needed = _flax_params(state, report), "embedding/kernel"
    else:
        keys, needed = _backbone(state, origin, report), "patch_embed.proj.weight"
    if needed not in keys:
        like = next((o for end, o in HINTS.items() if any(k.endswith(end) for k in state)), None)
        raise UserError(
            f"{needed} is missing (found {', '.join(list(state)[:3])}, …). Expected a ViT --from "
            f"{origin}" + (f"; it looks like --from {like}." if like else ".")
        )
    arrays = {n: SourceArray(_float32(k, state[k], report), k) for n, k in keys.items()}
    if origin == "big_vision":
        heads = big_vision_names.count_heads(arrays)
        return FoundViT(big_vision_names.to_pytorch(arrays), heads)
    return FoundViT(arrays, None)


def _state_dict(
    tree: Any, wrappers: tuple[str, ...], report: ImportReport
) -> dict[str, np.ndarray]:
    """Return the arrays by key, of the checkpoint or of its first wrapper."""
    if not isinstance(tree, Mapping):
        raise UserError(f"the file holds a {type(tree).__name__}. Expected arrays by name.")
    for wrapper in (*wrappers, *ANY_WRAPPER):
        if isinstance(tree.get(wrapper), Mapping):
            reason = f"not in {wrapper!r}, which holds the weights"
            report.ignored |= {ascii(n).strip("'"): reason for n in tree if n != wrapper}
            tree = tree[wrapper]
            break
    state = {}
    for name, value in tree.items():
        if not str(name).isprintable():
            raise UserError(f"the key {str(name)[:80]!r} cannot be printed. Rename it.")
        if isinstance(name, str) and isinstance(value, np.ndarray):
            state[name] = value
        else:
            report.ignored[str(name)] = "not an array"
    if not state:
        found = ", ".join(map(str, list(tree)[:5])) or "nothing"
        raise UserError(f"the file has no arrays by name (found {found}). Expected a ViT.")
    return state


def _flax_params(state: Mapping[str, Any], report: ImportReport) -> dict[str, str]:
    """Return name -> key of the parameters, without the prefix of a train state."""
    prefix = next((p for p in FLAX_PREFIXES if p + "embedding/kernel" in state), "")
    report.ignored |= {key: "not a parameter" for key in state if not key.startswith(prefix)}
    return {key.removeprefix(prefix): key for key in state if key.startswith(prefix)}


def _backbone(state: Mapping[str, Any], origin: str, report: ImportReport) -> dict[str, str]:
    """Return name -> key of the ViT, without prefixes."""
    keys = {key: key for key in state}
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in keys)), None):
        keys = {name.removeprefix(prefix): key for name, key in keys.items()}
    own = BACKBONES.get(origin, "")
    if not any(name.startswith(own) for name in keys):
        return keys
    for name, key in keys.items():
        if not name.startswith(own):
            reasons = (r for prefix, r in BESIDE_BACKBONE.items() if name.startswith(prefix))
            report.ignored[key] = next(reasons, f"not part of {own.rstrip('.')}")
    return {name.removeprefix(own): key for name, key in keys.items() if name.startswith(own)}


def _float32(key: str, value: np.ndarray, report: ImportReport) -> np.ndarray:
    if value.dtype.kind not in "fiub" and value.dtype != jnp.bfloat16:
        raise UserError(f"{key} has dtype {value.dtype}. Expected real numbers.")
    note = f"{value.dtype} arrays are converted to float32"
    if value.dtype != np.float32 and value.dtype.kind not in "iub" and note not in report.notes:
        report.notes.append(note)
    return value.astype(np.float32, copy=False)
