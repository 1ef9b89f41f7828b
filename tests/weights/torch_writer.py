"""Writes PyTorch's two file formats without PyTorch, including damaged and hostile files.

Pickles are assembled opcode by opcode, so that they can name and claim anything.
"""

from __future__ import annotations

import dataclasses
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
TYPES = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "u1": "Byte", "b1": "Bool"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor as a pickle describes it: a view of the storage `key`."""

    key: str
    length: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0
    kind: str = "Float"
    rebuild: str = "torch._utils\n_rebuild_tensor_v2"


class Opcodes(bytes):
    """Opcodes that push one object on the stack of the unpickler."""


def opcodes(value: Any) -> bytes:
    """Returns the opcodes of a value, without protocol and stop."""
    if isinstance(value, Opcodes):
        return value
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if value is None:
        return b"N"
    if isinstance(value, int):
        return b"I%d\n" % value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, Mapping):
        items = b"".join(opcodes(k) + opcodes(v) for k, v in value.items())
        return b"}(" + items + b"u"
    assert isinstance(value, Tensor)
    kind = Opcodes(b"ctorch\n%sStorage\n" % value.kind.encode())
    storage = opcodes(("storage", kind, value.key, "cpu", value.length)) + b"Q"
    hooks = Opcodes(b"ccollections\nOrderedDict\n)R")
    arguments = (Opcodes(storage), value.offset, value.size, value.stride, 0, hooks)
    return b"c%s\n" % value.rebuild.encode() + opcodes(arguments) + b"R"


def pickled(value: Any) -> bytes:
    """Returns a complete pickle."""
    return b"\x80\x02" + opcodes(value) + b"."


def tensors(tree: Any, storages: dict[str, bytes]) -> Any:
    """Replaces every array of `tree` by a tensor, and adds its storage to `storages`."""
    if isinstance(tree, Mapping):
        return {name: tensors(value, storages) for name, value in tree.items()}
    if not isinstance(tree, np.ndarray):
        return tree
    key = str(len(storages))
    storages[key] = tree.tobytes()
    steps = [step // tree.itemsize for step in np.ascontiguousarray(tree).strides]
    kind = TYPES[tree.dtype.str[1:]]
    return Tensor(key, tree.size, tree.shape, tuple(steps[: tree.ndim]), kind=kind)


def write_zip(path: Path, tree: Any, storages: Mapping[str, bytes] | None = None) -> Path:
    """Writes the format of PyTorch 1.6 and newer."""
    if storages is None:
        tree = tensors(tree, storages := {})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", tree if isinstance(tree, bytes) else pickled(tree))
        archive.writestr("archive/version", "3\n")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def write_legacy(path: Path, tree: Any, storages: Mapping[str, bytes] | None = None) -> Path:
    """Writes the format before PyTorch 1.6; numbers must have 4 bytes."""
    if storages is None:
        tree = tensors(tree, storages := {})
    machine = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}
    content = b"".join(pickle.dumps(value, 2) for value in (MAGIC, PROTOCOL, machine))
    content += pickled(tree) + pickle.dumps(list(storages), 2)
    for value in storages.values():
        content += struct.pack("<q", len(value) // 4) + value
    path.write_bytes(content)
    return path
