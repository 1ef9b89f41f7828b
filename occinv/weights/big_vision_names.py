"""Converts a ViT between the names and layouts of big_vision (`models/vit.py`) and PyTorch.

big_vision's kernels are [in, out]. Those of attention have an axis for the heads: queries, keys and
values [D, heads, D / heads], with biases [heads, D / heads], and the output [heads, D / heads, D].
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from occinv.schema import UserError
from occinv.weights.pytorch_names import SourceArray, flax_layout, torch_layout

BLOCK = "Transformer/encoderblock"
LAYERS = {  # of a block
    "LayerNorm_0": "norm1",
    "MultiHeadDotProductAttention_0/query": "attn.q",
    "MultiHeadDotProductAttention_0/key": "attn.k",
    "MultiHeadDotProductAttention_0/value": "attn.v",
    "MultiHeadDotProductAttention_0/out": "attn.proj",
    "LayerNorm_1": "norm2",
    "MlpBlock_0/Dense_0": "mlp.fc1",
    "MlpBlock_0/Dense_1": "mlp.fc2",
}
NAMES = {  # big_vision -> PyTorch; {} is the index of a block; the last key of a name is written
    "Transformer/posembed_input/pos_embedding": "pos_embed",
    "Transformer/pos_embedding": "pos_embed",
    "pos_embedding": "pos_embed",
    "embedding/kernel": "patch_embed.proj.weight",
    "embedding/bias": "patch_embed.proj.bias",
    "cls": "cls_token",
    "mask_token": "mask_token",  # our own key, big_vision has no such token
    "Transformer/encoder_norm/scale": "norm.weight",
    "Transformer/encoder_norm/bias": "norm.bias",
    "head/kernel": "head.weight",
    "head/bias": "head.bias",
}
for _layer, _name in LAYERS.items():
    _weight = "scale" if _layer.startswith("LayerNorm") else "kernel"
    NAMES[f"{BLOCK}_{{}}/{_layer}/{_weight}"] = f"blocks.{{}}.{_name}.weight"
    NAMES[f"{BLOCK}_{{}}/{_layer}/bias"] = f"blocks.{{}}.{_name}.bias"
KEYS = {name: key for key, name in NAMES.items()}
OLDER = {  # before Flax Linen all layers of a block shared one counter
    "/LayerNorm_2/": "/LayerNorm_1/",
    "/MultiHeadDotProductAttention_1/": "/MultiHeadDotProductAttention_0/",
    "/MlpBlock_3/": "/MlpBlock_0/",
}
QKV = ("attn.q", "attn.k", "attn.v")


def to_pytorch(arrays: Mapping[str, SourceArray]) -> dict[str, SourceArray]:
    """Return arrays by PyTorch name, in its layouts; a key without such a name keeps its own.

    Blocks may be numbered, or stacked along the first axis of each array. Raises UserError if two
    keys are the same parameter.
    """
    found: dict[str, SourceArray] = {}
    for name, (value, key) in arrays.items():
        template, index = _without_index(name)
        blocks = {index: value}
        if template.startswith(f"{BLOCK}/"):
            if not value.ndim:
                raise UserError(f"{key} is a scalar. Expected stacked blocks along a first axis.")
            template = template.replace(BLOCK, f"{BLOCK}_{{}}")
            blocks = {str(i): block for i, block in enumerate(value)}
        for old, new in OLDER.items():
            template = template.replace(old, new)
        template = NAMES.get(template, template)
        for index, block in blocks.items():
            official = template.replace("{}", index)
            if official in found:
                raise UserError(
                    f"{key} and {found[official].key} are the same parameter. Expected one of them."
                )
            found[official] = SourceArray(_to_layout(template, block), key)
    return found


def _without_index(name: str) -> tuple[str, str]:
    """Return `name` with {} for the index of a block, and that index."""
    if match := re.search(r"(?<=/encoderblock_)\d+|(?<=^blocks\.)\d+", name):
        return f"{name[: match.start()]}{{}}{name[match.end() :]}", match[0]
    return name, ""


def _to_layout(template: str, value: np.ndarray) -> np.ndarray:
    layer, _, leaf = template.rpartition(".")
    if layer.endswith(QKV):
        value = _merged(value, value.ndim - 2)
    elif template.endswith("attn.proj.weight"):
        value = _merged(value, 0)
    return torch_layout(value) if leaf == "weight" else value


def _merged(value: np.ndarray, axis: int) -> np.ndarray:
    """Merge two axes; an array without them keeps its shape, which is an error later."""
    if value.ndim < 2:
        return value
    shape = value.shape
    return value.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def count_heads(arrays: Mapping[str, SourceArray]) -> int | None:
    """Return the number of heads in kernels of queries [..., D, heads, D / heads], or None."""
    shapes = (value.shape for name, (value, _) in arrays.items() if name.endswith("/query/kernel"))
    return next((shape[-2] for shape in shapes if len(shape) >= 3), None)


def from_pytorch(arrays: Mapping[str, np.ndarray], heads: int) -> dict[str, np.ndarray]:
    """Return arrays by big_vision's current keys, in its layouts: the inverse of `to_pytorch`.

    Args:
      arrays: Arrays by PyTorch name, with queries, keys and values fused.
      heads: The number of attention heads.
    """
    found = {}
    for name, value in arrays.items():
        template, index = _without_index(name)
        parts = {template: value}
        if "attn.qkv" in template:
            names = [template.replace("attn.qkv", layer) for layer in QKV]
            parts = dict(zip(names, np.split(value, 3), strict=True))
        for part, array in parts.items():
            layer, _, leaf = part.rpartition(".")
            array = flax_layout(array) if leaf == "weight" else array
            if layer.endswith(QKV):
                array = array.reshape(*array.shape[:-1], heads, -1)
            elif part.endswith("attn.proj.weight"):
                array = array.reshape(heads, -1, array.shape[-1])
            found[KEYS[part].replace("{}", index)] = array
    return found
