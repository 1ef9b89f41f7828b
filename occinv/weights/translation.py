"""The official PyTorch names and layouts of a ViT, to and from our tree; sizes from the shapes.

`official` names are those of models_mae.py and models_vit.py, which timm shares. PyTorch has
linear layers as [out, in] and the patch embedding as a convolution [D, 3, p, p]; ours are [in, out]
and [p · p · 3, D].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from occinv.schema import UserError
from occinv.weights.listing import Listing
from occinv.weights.matching import Named

Tree = dict[str, Any]
INSIDE = {  # a block: official -> ours, and how many times the width goes in and comes out
    "norm1": ("norm1", None),
    "attn.qkv": ("attention qkv", (1, 3)),
    "attn.proj": ("attention out", (1, 1)),
    "norm2": ("norm2", None),
    "mlp.fc1": ("mlp in", (1, 4)),
    "mlp.fc2": ("mlp out", (4, 1)),
}
SEPARATE = ("{}", "{}_proj")  # names of queries, keys and values that are not fused: attn.q.weight


class Reader:
    """Hands out arrays by official name, checked, and enters them in the listing.

    Args:
      arrays: by official name; emptied by and by.
      path: of the file, for errors.
    """

    def __init__(self, arrays: Mapping[str, Named], listing: Listing, path: str) -> None:
        self.arrays = dict(arrays)
        self.listing = listing
        self.path = path

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the array `name`. Raises UserError if it is missing."""
        if name not in self.arrays:
            raise UserError(f"{self.path} has no {name}, expected in a ViT")
        return self.arrays[name].value.shape

    def take(self, name: str, *shape: int) -> np.ndarray:
        """The array `name`. Raises UserError if it is missing or not of this shape."""
        found = self.shape(name)
        value, keys = self.arrays[name]
        if found != shape:
            raise UserError(
                f"{', '.join(keys)} of {self.path} has shape {list(found)} as {name}, expected "
                f"{list(shape)} in a ViT with MLPs 4 times as wide as it is"
            )
        del self.arrays[name]
        self.listing.used += [key for key in keys if key not in self.listing.used]
        return value

    def ignore(self, name: str, reason: str) -> None:
        """Leaves `name` unused."""
        for key in self.arrays.pop(name).names:
            self.listing.ignored[key] = reason

    def dense(self, name: str, inputs: int, outputs: int) -> Tree:
        """A linear layer."""
        kernel = self.take(f"{name}.weight", outputs, inputs).T
        return {"kernel": kernel, "bias": self.take(f"{name}.bias", outputs)}

    def norm(self, name: str, width: int) -> Tree:
        """A layer norm."""
        scale = self.take(f"{name}.weight", width)
        return {"scale": scale, "bias": self.take(f"{name}.bias", width)}

    def patch_embed(self, width: int, side: int) -> Tree:
        """The patch embedding."""
        kernel = self.take("patch_embed.proj.weight", width, 3, side, side)
        kernel = kernel.transpose(2, 3, 1, 0).reshape(-1, width)
        return {"kernel": kernel, "bias": self.take("patch_embed.proj.bias", width)}

    def blocks(self, prefix: str, width: int) -> Tree:
        """All blocks whose names begin with `prefix`, stacked."""
        layers = [self._block(f"{prefix}.{i}", width) for i in range(self.depth(prefix))]
        return {"scan": _stack(layers)}

    def depth(self, prefix: str) -> int:
        """How many blocks there are. Raises UserError if there are none."""
        matches = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in self.arrays)
        numbers = {int(match[1]) for match in matches if match}
        if not numbers or max(numbers) >= len(numbers):
            raise UserError(
                f"{self.path} has {prefix} {sorted(numbers)[:40]}, expected them from 0 on"
            )
        return len(numbers)

    def _block(self, stem: str, width: int) -> Tree:
        self._fuse(f"{stem}.attn", width)
        block: Tree = {}
        for official, (place, times) in INSIDE.items():
            name = f"{stem}.{official}"
            if times is None:
                layer = self.norm(name, width)
            else:
                layer = self.dense(name, times[0] * width, times[1] * width)
            node = block
            *above, last = place.split()
            for part in above:
                node = node.setdefault(part, {})
            node[last] = layer
        return block

    def _fuse(self, stem: str, width: int) -> None:
        """Makes `qkv` of separate queries, keys and values, and of biases that are not there."""
        for pattern in SEPARATE:
            q, k, v = (f"{stem}.{pattern.format(letter)}" for letter in "qkv")
            if f"{q}.weight" in self:
                self._join(f"{stem}.qkv.weight", [f"{n}.weight" for n in (q, k, v)], (width, width))
                self._join(f"{stem}.qkv.bias", [f"{n}.bias" for n in (q, k, v)], (width,))
        if f"{stem}.qkv.bias" not in self:  # BEiT's keys have none, some ViTs have none at all
            names = [f"{stem}.{letter}_bias" for letter in "qkv"]
            self._join(f"{stem}.qkv.bias", names, (width,))

    def _join(self, name: str, parts: list[str], shape: tuple[int, ...]) -> None:
        keys: list[str] = []
        values = []
        for part in parts:
            if part not in self and part.endswith("bias"):
                self.listing.missing[part] = "zeros"
                values.append(np.zeros(shape, np.float32))
                continue
            if self.shape(part) != shape:
                raise UserError(
                    f"{part} of {self.path} has shape {list(self.shape(part))}, expected "
                    f"{list(shape)}"
                )
            found = self.arrays.pop(part)
            values.append(found.value)
            keys += found.names
        self.arrays[name] = Named(np.concatenate(values), tuple(keys))


def _stack(layers: list[Tree]) -> Tree:
    """The same tree once, every array with a leading axis for the layer."""
    return {
        name: _stack([layer[name] for layer in layers])
        if isinstance(value, dict)
        else np.stack([layer[name] for layer in layers])
        for name, value in layers[0].items()
    }


def grid_of(rows: int, what: str) -> tuple[int, bool]:
    """Patches a side of a position embedding with `rows`, and whether one is the class token's.

    Raises UserError if the patches are not a square.
    """
    for has_class, count in ((True, rows - 1), (False, rows)):
        side = round(max(count, 0) ** 0.5)
        if side and side**2 == count:
            return side, has_class
    raise UserError(
        f"{what} has {rows} rows, expected a square number, or one more for the class token: "
        "images that are not square are not supported"
    )


def to_official(encoder: Tree, head: Tree | None = None) -> dict[str, np.ndarray]:
    """Our parameters under official names, in PyTorch's layouts: the inverse of `Reader`.

    Args:
      encoder: parameters of f.
      head: of a classifier, if it is to be there.
    """
    width = encoder["class_token"].shape[0]
    patch = encoder["patch_embed"]["kernel"]
    side = round((patch.shape[0] / 3) ** 0.5)
    found = {
        "cls_token": encoder["class_token"][None, None],
        "pos_embed": encoder["position"][None],
        "patch_embed.proj.weight": patch.reshape(side, side, 3, width).transpose(3, 2, 0, 1),
        "patch_embed.proj.bias": encoder["patch_embed"]["bias"],
    }
    if "mask_token" in encoder:
        found["mask_token"] = encoder["mask_token"][None, None]
    scan = encoder["blocks"]["scan"]
    for index in range(len(scan["norm1"]["bias"])):
        for official, (place, _) in INSIDE.items():
            layer = scan
            for part in place.split():
                layer = layer[part]
            layer = {name: value[index] for name, value in layer.items()}
            found |= _layer(f"blocks.{index}.{official}", layer)
    if "norm" in encoder:
        found |= _layer("norm", encoder["norm"])
    if head is not None:
        if "norm" in head:
            found |= _layer("fc_norm", head["norm"])
        found |= _layer("head", head["linear"])
    return found


def _layer(name: str, layer: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    weight = layer["kernel"].T if "kernel" in layer else layer["scale"]
    return {f"{name}.weight": weight, f"{name}.bias": layer["bias"]}


def reasons(names: Iterable[str], table: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each of `names` that a regular expression of `table` is found in, what it says."""
    found = {}
    for name in names:
        for pattern, reason in table:
            if re.search(pattern, name):
                found[name] = reason
                break
    return found
