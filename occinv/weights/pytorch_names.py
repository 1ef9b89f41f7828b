"""Converts a ViT between PyTorch's names and layouts and our parameter tree.

The names are those of MAE's models_mae.py and models_vit.py, which timm shares. PyTorch stores a
linear layer as [out, in] and the patch embedding as a convolution [D, 3, p, p]; our kernels are
[in, out] and [p · p · 3, D].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from occinv.schema import UserError
from occinv.weights.import_report import ImportReport

Tree = dict[str, Any]
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
BLOCK = {  # PyTorch layer -> (our layer, outputs and inputs in widths; a norm has no inputs)
    "norm1": ("norm1", (1,)),
    "attn.qkv": ("attention/qkv", (3, 1)),
    "attn.proj": ("attention/out", (1, 1)),
    "norm2": ("norm2", (1,)),
    "mlp.fc1": ("mlp/in", (4, 1)),
    "mlp.fc2": ("mlp/out", (1, 4)),
}


class SourceArray(NamedTuple):
    """An array, and the key that it has in the file."""

    value: np.ndarray
    key: str


def flax_layout(weight: np.ndarray) -> np.ndarray:
    """Transpose [out, in, ...] to [..., in, out]; a vector stays as it is."""
    return np.moveaxis(weight, (0, 1), (-1, -2)) if weight.ndim > 1 else weight


def torch_layout(kernel: np.ndarray) -> np.ndarray:
    """Transpose [..., in, out] to [out, in, ...]; a vector stays as it is."""
    return np.moveaxis(kernel, (-1, -2), (0, 1)) if kernel.ndim > 1 else kernel


class ArrayReader:
    """Arrays by PyTorch name, whose shapes are checked and whose keys are reported as used.

    Attributes:
      arrays: The arrays that have not been taken.
    """

    def __init__(self, arrays: Mapping[str, SourceArray], report: ImportReport) -> None:
        self.arrays = dict(arrays)
        self.report = report

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the array `name`. Raises UserError if it is missing."""
        if name not in self.arrays:
            raise UserError(f"{name} is missing. Expected every parameter of a ViT.")
        return self.arrays[name].value.shape

    def take(self, name: str, *shape: int) -> np.ndarray:
        """Return the array `name`. Raises UserError if it is missing or has another shape."""
        found = self.shape(name)
        value, key = self.arrays[name]
        if found != shape:
            raise UserError(
                f"{key} has shape {list(found)} as {name} in PyTorch's layout. Expected "
                f"{list(shape)}, as in a plain ViT with MLPs 4 times as wide as its tokens."
            )
        del self.arrays[name]
        if key not in self.report.used:
            self.report.used.append(key)
        return value

    def layer(self, name: str, outputs: int, *inputs: int) -> Tree:
        """Return our parameters of a norm (no inputs), a linear layer or a convolution."""
        weight = self.take(f"{name}.weight", outputs, *inputs)
        bias = self.take(f"{name}.bias", outputs)
        if not inputs:
            return {"scale": weight, "bias": bias}
        return {"kernel": flax_layout(weight).reshape(-1, outputs), "bias": bias}

    def depth(self, prefix: str) -> int:
        """Count the blocks `<prefix>.<i>`. Raises UserError if an index is missing."""
        matches = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in self.arrays)
        indices = {int(match[1]) for match in matches if match}
        if not indices or max(indices) >= len(indices):
            raise UserError(
                f"{prefix} has indices {sorted(indices)[:40]}. Expected them from 0, without gaps."
            )
        return len(indices)

    def blocks(self, prefix: str, width: int) -> Tree:
        """Return our parameters of all blocks `<prefix>.<i>`, stacked along a first axis."""
        blocks = []
        for index in range(self.depth(prefix)):
            layers = {}
            for name, (ours, sizes) in BLOCK.items():
                stem = f"{prefix}.{index}.{name}"
                if name == "attn.qkv":
                    layers[ours] = self._qkv(stem.removesuffix("qkv"), width)
                else:
                    layers[ours] = self.layer(stem, *(size * width for size in sizes))
            blocks.append(unflatten_dict(layers, sep="/"))
        return {"scan": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}

    def _qkv(self, stem: str, width: int) -> Tree:
        """Return the projection to queries, keys and values, fused. Missing biases are zeros."""
        suffix = next((s for s in ("", "_proj") if f"{stem}q{s}.weight" in self), None)
        if suffix is not None:
            names = [f"{stem}{letter}{suffix}" for letter in "qkv"]
            weight = np.concatenate([self.take(f"{name}.weight", width, width) for name in names])
            biases = [f"{name}.bias" for name in names]
        elif f"{stem}qkv.bias" in self:
            return self.layer(f"{stem}qkv", 3 * width, width)
        else:
            weight = self.take(f"{stem}qkv.weight", 3 * width, width)
            biases = [f"{stem}{letter}_bias" for letter in "qkv"]  # BEiT has none for the keys
        self.report.missing |= {name: "zeros" for name in biases if name not in self}
        bias = [
            self.take(name, width) if name in self else np.zeros(width, np.float32)
            for name in biases
        ]
        return {"kernel": weight.T, "bias": np.concatenate(bias)}


def to_pytorch(encoder: Tree, head: Tree | None = None) -> dict[str, np.ndarray]:
    """Return our parameters under PyTorch's names and in its layouts.

    Args:
      encoder: Parameters of the ViT.
      head: Parameters of a classifier, if it is to be included.
    """
    patch = encoder["patch_embed"]["kernel"]
    side, width = round((len(patch) / 3) ** 0.5), patch.shape[-1]
    found = {
        "cls_token": encoder["class_token"][None, None],
        "pos_embed": encoder["position"][None],
        "patch_embed.proj.weight": torch_layout(patch.reshape(side, side, 3, width)),
        "patch_embed.proj.bias": encoder["patch_embed"]["bias"],
    }
    if "mask_token" in encoder:
        found["mask_token"] = encoder["mask_token"][None, None]
    names = {ours: name for name, (ours, _) in BLOCK.items()}
    for path, stacked in flatten_dict(encoder["blocks"]["scan"], sep="/").items():
        layer, _, leaf = path.rpartition("/")
        for index, value in enumerate(stacked):
            found[f"blocks.{index}.{names[layer]}.{LEAVES[leaf]}"] = value.T
    layers = {"norm": encoder.get("norm", {})}
    if head is not None:
        layers |= {"fc_norm": head.get("norm", {}), "head": head["linear"]}
    for name, layer in layers.items():
        found |= {f"{name}.{LEAVES[leaf]}": value.T for leaf, value in layer.items()}
    return found
