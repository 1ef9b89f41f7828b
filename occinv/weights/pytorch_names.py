"""Converts a ViT between PyTorch's names and layouts and our parameter tree.

The names are those of MAE's models_mae.py and models_vit.py, which timm shares. PyTorch stores a
linear layer as [out, in] and the patch embedding as a convolution [D, C, h, w]; our kernels are
[in, out] and [h · w · C, D].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from occinv.models.vit import ViT
from occinv.schema import UserError
from occinv.size import sides
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
LAYER_SCALES = {"ls1.gamma": "scale1/scale", "ls2.gamma": "scale2/scale"}


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


def as_float32(value: np.ndarray, key: str, report: ImportReport) -> np.ndarray:
    """Return `value` as float32. Raises UserError unless it has finite float numbers only."""
    if value.dtype.kind != "f" and value.dtype != jnp.bfloat16:
        raise UserError(
            f"{key} has dtype {value.dtype}. Expected float numbers: quantized weights cannot be "
            "imported."
        )
    note = f"{value.dtype} arrays are converted to float32"
    if value.dtype != np.float32 and note not in report.notes:
        report.notes.append(note)
    with np.errstate(over="ignore"):  # an overflow is infinite
        value = value.astype(np.float32, copy=False)
    if not np.isfinite(value).all():
        count = int(value.size - np.isfinite(value).sum())
        raise UserError(
            f"{key} has {count} numbers that are not finite. Expected finite weights: the "
            "checkpoint is of a diverged run, or damaged."
        )
    return value


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

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """Return the shape of the array `name`.

        Raises UserError if it is missing, or has another number of `axes`.
        """
        if name not in self.arrays:
            raise UserError(f"{name} is missing. Expected every parameter of a ViT.")
        found = self.arrays[name].value.shape
        if axes not in (None, len(found)):
            raise UserError(f"{name} has shape {list(found)}. Expected {axes} axes.")
        return found

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
        return as_float32(value, key, self.report)

    def vector(self, name: str, width: int) -> np.ndarray:
        """Return the token `name`, [1, 1, D] or [1, D], as [D]."""
        return self.take(name, *[1] * (len(self.shape(name)) - 1), width).reshape(width)

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

    @property
    def has_layer_scale(self) -> bool:
        """Whether the ViT has LayerScale, before its blocks have been taken."""
        return any(name.endswith(".ls1.gamma") for name in self.arrays)

    def blocks(self, prefix: str, width: int) -> Tree:
        """Return our parameters of all blocks `<prefix>.<i>`, stacked along a first axis."""
        blocks = []
        for index in range(self.depth(prefix)):
            layers: Tree = {}
            for name, (ours, sizes) in BLOCK.items():
                stem = f"{prefix}.{index}.{name}"
                if name == "attn.qkv":
                    layers[ours] = self._qkv(stem.removesuffix("qkv"), width)
                else:
                    layers[ours] = self.layer(stem, *(size * width for size in sizes))
            if self.has_layer_scale:
                for name, ours in LAYER_SCALES.items():
                    layers[ours] = self.take(f"{prefix}.{index}.{name}", width)
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


def to_pytorch(vit: ViT, encoder: Tree, head: Tree | None = None) -> dict[str, np.ndarray]:
    """Return our parameters under PyTorch's names and in its layouts.

    Args:
      vit: The ViT.
      encoder: Its parameters.
      head: Parameters of a classifier, if it is to be included.
    """
    patch = encoder["patch_embed"]["kernel"]
    has_class = "class_token" in encoder
    found = {
        "pos_embed": encoder["position"][None, 0 if has_class else 1 :],
        "patch_embed.proj.weight": torch_layout(
            patch.reshape(*sides(vit.patch_size), vit.channels, -1)
        ),
        "patch_embed.proj.bias": encoder["patch_embed"]["bias"],
    }
    if has_class:
        found["cls_token"] = encoder["class_token"][None, None]
    if "mask_token" in encoder:
        found["mask_token"] = encoder["mask_token"][None, None]
    if "registers" in encoder:
        found["register_tokens"] = encoder["registers"][None]
    found |= blocks_to_pytorch(encoder["blocks"], "blocks")
    layers = {"norm": encoder.get("norm", {})}
    if head is not None:
        layers |= {"fc_norm": head.get("norm", {}), "head": head["linear"]}
    for name, layer in layers.items():
        found |= {f"{name}.{LEAVES[leaf]}": value.T for leaf, value in layer.items()}
    return found


def blocks_to_pytorch(blocks: Tree, prefix: str) -> dict[str, np.ndarray]:
    """Return our stacked blocks as `<prefix>.<i>` in PyTorch's names and layouts."""
    found: dict[str, np.ndarray] = {}
    names = {ours: name for name, (ours, _) in BLOCK.items()}
    scales = {ours: name for name, ours in LAYER_SCALES.items()}
    for path, stacked in flatten_dict(blocks["scan"], sep="/").items():
        layer, _, leaf = path.rpartition("/")
        name = scales.get(path) or f"{names[layer]}.{LEAVES[leaf]}"
        found |= {f"{prefix}.{index}.{name}": value.T for index, value in enumerate(stacked)}
    return found


def decoder_to_pytorch(decoder: Tree) -> dict[str, np.ndarray]:
    """Return the parameters of MAE's decoder under the names of models_mae.py."""
    found = {
        "mask_token": decoder["mask_token"][None, None],
        "decoder_pos_embed": decoder["position"][None],
    }
    for name, ours in (("embed", "embed"), ("norm", "norm"), ("pred", "predict")):
        for leaf, value in decoder[ours].items():
            found[f"decoder_{name}.{LEAVES[leaf]}"] = value.T
    return found | blocks_to_pytorch(decoder["blocks"], "decoder_blocks")
