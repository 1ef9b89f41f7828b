"""big_vision's names and layouts (`models/vit.py`), to and from the official PyTorch ones.

Its kernels are [in, out], and those of attention have an axis for the heads. Arrays are only
transposed, reshaped and joined, so nothing is lost either way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from occinv.schema import UserError
from occinv.weights.listing import Listing

T = TypeVar("T")
PREFIXES = ("opt/target/", "params/", "")
BLOCK = "Transformer/encoderblock"
OUTSIDE = {  # ours to write; of several names for one the first is the newest
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "cls": "cls_token",
    "mask_token": "mask_token",  # no name of big_vision's, which has no such token
    "pos_embedding": "pos_embed",
    "Transformer/pos_embedding": "pos_embed",
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
# Linen numbers the layers of a block by kind; before it, all were numbered in one row.
INSIDE = {
    "LayerNorm_0": "norm1",
    "MultiHeadDotProductAttention_0/query": "attn.q",
    "MultiHeadDotProductAttention_0/key": "attn.k",
    "MultiHeadDotProductAttention_0/value": "attn.v",
    "MultiHeadDotProductAttention_0/out": "attn.proj",
    "LayerNorm_1": "norm2",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}
OLDER = {
    "LayerNorm_2": "LayerNorm_1",
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "MlpBlock_3": "MlpBlock_0",
}
LEAVES = {"scale": "weight", "kernel": "weight", "bias": "bias"}


def without_prefix(state: Mapping[str, T], listing: Listing) -> dict[str, tuple[str, T]]:
    """Name -> (key in the file, array) of the parameters, which are alone or beside others."""
    for prefix in PREFIXES:
        if prefix + "embedding/kernel" in state:
            break
    for name in state:
        if not name.startswith(prefix):
            listing.ignored[name] = "not a parameter"
    return {n.removeprefix(prefix): (n, v) for n, v in state.items() if n.startswith(prefix)}


def to_official(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, tuple[str, ...]]]:
    """Official name -> (array in PyTorch's layout, the keys it was made of).

    A key that has no official name keeps its own. Raises UserError for an array of another rank
    than its name promises, and for two keys of the same parameter.
    """
    found: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}

    def enter(name: str, key: str, value: np.ndarray) -> None:
        if name in found:
            raise UserError(f"{key} and {found[name][1][0]} are the same parameter, expected one")
        found[name] = (_transposed(key, name, value), (key,))

    for key, value in arrays.items():
        match = re.fullmatch(rf"{BLOCK}(?:_(\d+))?/(.*)/(scale|kernel|bias)", key)
        if match is None:
            enter(OUTSIDE.get(key, key), key, value)
            continue
        number, layer, leaf = match.groups()
        for theirs, newer in OLDER.items():
            layer = re.sub(rf"^{theirs}(?=/|$)", newer, layer)
        official = f"{INSIDE.get(layer, layer)}.{LEAVES[leaf]}"
        if number is None and not value.ndim:
            raise UserError(f"{key} has no axes, expected one of the depth first")
        layers = {int(number): value} if number is not None else dict(enumerate(value))
        for index, part in layers.items():
            enter(f"blocks.{index}.{official}", key, part)
    return found


def heads(arrays: Mapping[str, tuple[int, ...]]) -> int | None:
    """Of attention, from the shapes by key: queries are [D, heads, D / heads], stacked or not."""
    for key, shape in arrays.items():
        if key.endswith("/query/kernel") and len(shape) >= 3:
            return shape[-2]
    return None


def _transposed(key: str, name: str, value: np.ndarray) -> np.ndarray:
    """A kernel of big_vision's as PyTorch has it; other arrays as they are."""
    part, _, leaf = name.rpartition(".")
    expected = {"patch_embed.proj": 4, "head": 2}.get(part)
    if leaf == "weight" and re.search(r"attn\.[qkv]$|attn\.proj$", part):
        expected = 3
    elif leaf == "weight" and ".mlp." in part:
        expected = 2
    if leaf == "bias" and re.search(r"attn\.[qkv]$", part):
        return value.reshape(-1)
    if leaf != "weight" or expected is None:
        return value
    if value.ndim != expected:
        raise UserError(f"{key} has shape {list(value.shape)}, expected {expected} axes")
    if expected == 4:
        return value.transpose(3, 2, 0, 1)  # [p, p, 3, D]
    if part.endswith("attn.proj"):
        return value.reshape(-1, value.shape[-1]).T  # [heads, D / heads, D]
    return value.reshape(len(value), -1).T


def from_official(arrays: Mapping[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """The inverse of `to_official`, in today's names, of arrays with queries, keys, values fused.

    Args:
      arrays: official name -> array in PyTorch's layout.
    """
    inside = {official: theirs for theirs, official in INSIDE.items()}
    outside = {official: theirs for theirs, official in reversed(OUTSIDE.items())}
    found: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.*)\.(weight|bias)", name)
        if match is None:
            found[outside[name]] = _untransposed(name, value, heads)
            continue
        index, layer, leaf = match.groups()
        parts = {layer: value}
        if layer == "attn.qkv":
            parts = dict(zip(("attn.q", "attn.k", "attn.v"), np.split(value, 3), strict=True))
        for part, own in parts.items():
            kind = {"weight": "scale" if value.ndim == 1 else "kernel"}.get(leaf, leaf)
            key = f"{BLOCK}_{index}/{inside[part]}/{kind}"
            found[key] = _untransposed(f"{part}.{leaf}", own, heads)
    return found


def _untransposed(name: str, value: np.ndarray, heads: int) -> np.ndarray:
    width = len(value)
    if re.fullmatch(r"attn\.[qkv]\.weight", name):
        return value.T.reshape(value.shape[1], heads, -1)
    if re.fullmatch(r"attn\.[qkv]\.bias", name):
        return value.reshape(heads, -1)
    if name == "attn.proj.weight":
        return value.T.reshape(heads, -1, width)
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T if value.ndim == 2 else value
