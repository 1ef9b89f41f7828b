"""Reads a checkpoint: a PyTorch, safetensors or npz file, recognized by its first bytes.

A folder of transformers or timm holds such a file beside its config. transformers writes a large
checkpoint in parts, with an index of them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from occinv.schema import UserError
from occinv.train.disk import read_json
from occinv.weights import torch_file
from occinv.weights.model_config import read_model_config

EXPECTED = "Expected a PyTorch checkpoint (.pth), safetensors or npz."
INDEX = ".index.json"  # lists the files of a checkpoint in parts, and the arrays of each
WHOLE = ("model.safetensors", "pytorch_model.bin")
FOLDER_FILES = (*WHOLE, *(name + INDEX for name in WHOLE))  # beside config.json
METADATA = ("heads", "image_size", "gelu", "pixel_range")


class Contents(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
      tree: Mappings, nested as they were saved, of NumPy arrays and other objects.
      metadata: What a safetensors file and config files beside it say of the ViT, by the names of
        `read_model_config`.
    """

    tree: Any
    metadata: Mapping[str, str]


def read_checkpoint(path: Path) -> Contents:
    """Read a checkpoint, whatever the name of the file. Nothing in it is executed.

    Args:
      path: A file, an index of the parts of a checkpoint, or a folder with config.json and one of
        FOLDER_FILES. The config beside a file of such a name is read, too.

    Raises:
      UserError: The file does not exist, has another format, is damaged or contains code.
    """
    if path.is_dir():
        inside = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not inside:
            names = f"{', '.join(FOLDER_FILES[:-1])} or {FOLDER_FILES[-1]}"
            raise UserError(f"the folder {path} has no {names}. {EXPECTED}")
        path = inside[0]
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}. {EXPECTED}")
    try:
        tree, metadata = (_read_parts if path.name.endswith(INDEX) else _read)(path)
        metadata = {name: metadata[name] for name in METADATA if name in metadata}
        if path.name in FOLDER_FILES:
            metadata = read_model_config(path.parent) | metadata
        return Contents(tree, metadata)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged or hostile file may raise anything
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{path} cannot be read ({text}). If it is damaged or incomplete, download it again."
        ) from error


def _read(path: Path) -> Contents:
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(0)
        if not start:
            raise UserError(f"the file is empty. {EXPECTED}")
        # Safetensors first: it begins with a length, whose low bytes may look like another format.
        if start[4:9] == b"\0\0\0\0{":
            with safe_open(path, framework="numpy") as tensors:
                tree = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
                return Contents(tree, tensors.metadata() or {})
        if start.startswith(b"PK\x03\x04"):
            return Contents(_read_zip(path), {})
        if start[:1] == b"\x80":
            return Contents(torch_file.read_legacy(file), {})
    raise UserError(f"the file begins with {start[:8]!r}. {EXPECTED}")


def _read_parts(path: Path) -> Contents:
    """Read the parts of a checkpoint that an index lists."""
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not (isinstance(places, dict) and places):
        raise UserError("expected an index with the file of each array under weight_map")
    tree: dict[str, Any] = {}
    for name in sorted({str(place) for place in places.values()}):
        part = path.parent / name
        if part.parent != path.parent or not part.is_file():
            raise UserError(f"the part {name!r} is not beside it. Download all parts.")
        tree |= _read(part).tree
    if missing := sorted(set(places) - set(tree)):
        raise UserError(
            f"the parts lack {len(missing)} arrays, such as {missing[0]!r}. Download all again."
        )
    return Contents({name: tree[name] for name in places}, {})


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names, size = archive.namelist(), sum(info.file_size for info in archive.infolist())
        if size > max(2**30, 100 * path.stat().st_size):  # weights hardly compress
            raise UserError(f"the file unpacks to {size / 2**30:.3g} GiB. {EXPECTED}")
        if entry := next((name for name in names if f"/{name}".endswith("/data.pkl")), None):
            return torch_file.read_zip(archive, entry)
    if not names or not all(name.endswith(".npy") for name in names):
        raise UserError(f"the file is a zip file without arrays. {EXPECTED}")
    with np.load(path, allow_pickle=False) as arrays:
        # npz has no name for bfloat16
        return {n: a.view(jnp.bfloat16) if a.dtype == "V2" else a for n, a in arrays.items()}
