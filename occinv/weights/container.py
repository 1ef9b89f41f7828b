"""The files that arrays come in, told apart by what is in them: PyTorch's, safetensors, npz."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from occinv.schema import UserError
from occinv.weights import torch_file
from occinv.weights.stored import Stored, damaged

EXPECTED = "expected a PyTorch checkpoint (.pth), safetensors or npz"


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is in a file.

    Attributes:
      tree: mappings, nested as they were saved, of `Stored` and of whatever else there was.
      metadata: of safetensors; empty otherwise.
    """

    path: Path
    tree: Any
    metadata: Mapping[str, str]


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Contents]:
    """The contents of a file, whatever it is called, while it is open.

    Nothing in the file is executed. Raises UserError if there is no such file, if it is of none of
    the three kinds, damaged, or contains code.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, {EXPECTED}")
    with contextlib.ExitStack() as stack:
        # Whatever a damaged or hostile file makes the readers raise is a fault of the file.
        try:
            contents = _read(path, stack)
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{path} does not exist, {EXPECTED}") from None
        except Exception as error:
            damaged(str(path), error)
        yield contents


def _read(path: Path, stack: contextlib.ExitStack) -> Contents:
    file = stack.enter_context(path.open("rb"))
    start = file.read(16)
    file.seek(0)
    if not start:
        raise UserError(f"{path} is empty, {EXPECTED}")
    # The length of the header comes first: its low bytes may be those of another format.
    if start[4:9] == b"\0\0\0\0{":
        return _safetensors(path, stack)
    if start.startswith(b"PK\x03\x04"):
        archive = stack.enter_context(zipfile.ZipFile(file))
        names = archive.namelist()
        if torch_file.pickle_of(names) is not None:
            return Contents(path, torch_file.read_zip(archive, path), {})
        if names and all(name.endswith(".npy") for name in names):
            return Contents(path, _npz(path, stack), {})
        raise UserError(f"{path} is a zip file without arrays, {EXPECTED}")
    if start[:1] == b"\x80":
        return Contents(path, torch_file.read_legacy(file, path), {})
    raise UserError(f"{path} begins with {start[:8]!r}, {EXPECTED}")


def _npz(path: Path, stack: contextlib.ExitStack) -> dict[str, Stored]:
    arrays = stack.enter_context(np.load(path, allow_pickle=False))
    return {name: Stored(functools.partial(arrays.__getitem__, name)) for name in arrays.files}


def _safetensors(path: Path, stack: contextlib.ExitStack) -> Contents:
    file = stack.enter_context(safe_open(path, framework="numpy"))
    names = list(file.keys())
    tree = {name: Stored(functools.partial(file.get_tensor, name)) for name in names}
    return Contents(path, tree, file.metadata() or {})
