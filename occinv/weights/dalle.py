"""The encoder of DALL·E's discrete VAE in a file: the pickled module, or its parameters by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from occinv.models.tokenizers.dalle import Dalle
from occinv.schema import UserError
from occinv.weights.imported import TOKENIZER
from occinv.weights.listing import Listing
from occinv.weights.stored import Stored
from occinv.weights.translation import Tree

FIRST, LAST = "blocks.input.w", "blocks.output.conv.w"


def read_tokenizer(tree: Any, listing: Listing, path: str) -> tuple[Tree, dict[str, Any]]:
    """Parameters `dalle`, and the section `objective` of a workdir that holds them.

    Raises UserError where the file is not that encoder, of whatever width and number of ids.
    """
    found = flat(tree)
    if FIRST not in found or LAST not in found:
        names = ", ".join(list(found)[:3]) or "no arrays"
        raise UserError(f"{path} has no {FIRST} and {LAST}, expected --from dalle (found {names})")
    arrays = {
        name: stored.array(f"{name} of {path}").astype(np.float32) for name, stored in found.items()
    }
    sizes = {"num_ids": len(arrays[LAST]), "hidden": len(arrays[FIRST])}
    num_ids, hidden = sizes["num_ids"], sizes["hidden"]
    shapes = Dalle(image_size=224, patch_size=16, num_ids=num_ids, hidden=hidden).shapes()

    def take(key_path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = official([key.key for key in key_path[1:]])
        if name not in arrays:
            raise UserError(f"{path} has no {name}, expected --from dalle")
        value = arrays.pop(name)
        listing.used.append(name)
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        if value.shape != leaf.shape:
            raise UserError(
                f"{name} of {path} has shape {list(found[name].read().shape)} in PyTorch's order, "
                f"expected one that is {list(leaf.shape)} here"
            )
        return value

    params = jax.tree_util.tree_map_with_path(take, shapes)
    if arrays:
        raise UserError(f"{path} has {', '.join(list(arrays)[:8])}, which DALL·E's encoder has not")
    listing.notes.append(f"tokenizer dalle: {num_ids} ids, hidden {hidden}")
    return params, {"name": TOKENIZER, "tokenizer": {"name": "dalle", **sizes}}


def official(names: list[str]) -> str:
    """`blocks.group_1.block_2.res_path.conv_3.w` for a path of ours."""
    *module, leaf = names
    inside = [
        part for name in module for part in re.sub(r"(?<=\d)_(?=block)", ".", name).split(".")
    ]
    if inside[-1].startswith("conv"):
        inside.insert(-1, "res_path")
    if inside == ["output"]:
        inside.append("conv")
    return ".".join(["blocks", *inside, {"kernel": "w", "bias": "b"}[leaf]])


def flat(tree: Any) -> dict[str, Stored]:
    """The arrays of nested mappings, their keys joined by dots.

    Raises UserError for a mapping that is in two places, or in itself: walking these has no end.
    """
    found: dict[str, Stored] = {}
    waiting, seen = [("", tree)], {id(tree)}
    while waiting:
        prefix, branch = waiting.pop(0)
        for name, value in branch.items() if isinstance(branch, Mapping) else ():
            if isinstance(value, Stored):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Mapping):
                if id(value) in seen:
                    raise UserError(f"{prefix}{name} is in two places, expected a tree of modules")
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))
    return found
