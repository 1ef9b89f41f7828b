"""Reads the encoder of DALL·E's discrete VAE, saved as a whole module or as arrays by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from occinv import schema
from occinv.models.tokenizers.dalle import Dalle
from occinv.schema import UserError
from occinv.weights.encoder_only import TOKENIZER_ONLY
from occinv.weights.import_report import IMAGES, ImportedRun, ImportReport
from occinv.weights.pytorch_names import as_float32, flax_layout, torch_layout

FIRST, LAST = "blocks.input.w", "blocks.output.conv.w"


def read_dalle(tree: Any, report: ImportReport) -> ImportedRun:
    """Return a run with the component `dalle`, of any width and number of ids.

    Raises UserError if the contents `tree` of the file are not that encoder.
    """
    arrays = {name: as_float32(array, name, report) for name, array in _flatten(tree).items()}
    if not all(name in arrays and arrays[name].ndim for name in (FIRST, LAST)):
        names = ", ".join(list(arrays)[:3]) or "no arrays"
        raise UserError(
            f"{FIRST} or {LAST} is missing (found {names}). Expected the encoder.pkl of DALL·E."
        )
    num_ids, hidden = len(arrays[LAST]), len(arrays[FIRST])
    tokenizer = Dalle(image_size=224, patch_size=16, num_ids=num_ids, hidden=hidden)

    def take(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = pytorch_name([key.key for key in path[1:]])
        if name not in arrays:
            raise UserError(f"{name} is missing. Expected every parameter of DALL·E's encoder.")
        value = arrays.pop(name)
        report.used.append(name)
        expected = torch_layout(np.broadcast_to(0, leaf.shape)).shape
        if value.shape != expected:
            raise UserError(f"{name} has shape {list(value.shape)}. Expected {list(expected)}.")
        return flax_layout(value)

    params = jax.tree_util.tree_map_with_path(take, tokenizer.shapes())
    if arrays:
        raise UserError(
            f"unknown arrays {', '.join(list(arrays)[:8])}. Expected the encoder.pkl of DALL·E."
        )
    report.notes.append(f"tokenizer dalle: {num_ids} ids, hidden {hidden}")
    section = {"name": "dalle", "num_ids": num_ids, "hidden": hidden}
    objective = {"name": TOKENIZER_ONLY, "tokenizer": section}
    experiment = schema.resolve({"objective": objective, "data": {"source": IMAGES}})
    return ImportedRun(experiment, params)


def pytorch_name(path: list[str]) -> str:
    """Return the name of a parameter in the file, e.g. `blocks.group_1.block_2.id_path.w`.

    Args:
      path: The keys of our parameter, e.g. `["group_1_block_2", "id_path", "kernel"]`.
    """
    *layers, leaf = re.sub(r"(?<=\d)_(?=block)", "/", "/".join(path)).split("/")
    if layers[-1].startswith("conv"):
        layers.insert(-1, "res_path")
    if layers == ["output"]:
        layers.append("conv")
    return ".".join(["blocks", *layers, {"kernel": "w", "bias": "b"}[leaf]])


def _flatten(tree: Any) -> dict[str, np.ndarray]:
    """Return the arrays of nested mappings, with keys joined by dots.

    A mapping in two places, or in itself, is an error: flattening it might never end.
    """
    found: dict[str, np.ndarray] = {}
    waiting, seen = [("", tree)], {id(tree)}
    while waiting:
        prefix, branch = waiting.pop(0)
        for name, value in branch.items() if isinstance(branch, Mapping) else ():
            if isinstance(value, np.ndarray):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Mapping):
                if id(value) in seen:
                    raise UserError(f"{prefix}{name} is in two places. Expected a tree of modules.")
                seen.add(id(value))
                waiting.append((f"{prefix}{name}.", value))
    return found
