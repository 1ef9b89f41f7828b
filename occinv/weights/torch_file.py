"""PyTorch's two file formats, read without PyTorch: a zip file, and before 1.6 a row of pickles.

After `torch/serialization.py`. Both describe tensors by a pickle (see pickled.py) and hold their
numbers beside it.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from occinv.schema import UserError
from occinv.weights.pickled import Storage, unpickle

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


def pickle_of(names: Iterable[str]) -> str | None:
    """The entry of a zip file that describes the tensors, or None if it is not of PyTorch."""
    return next((n for n in names if n == "data.pkl" or n.endswith("/data.pkl")), None)


def read_zip(archive: zipfile.ZipFile, path: Path) -> Any:
    """What was saved, its tensors as `Stored`, to be read while `archive` is open.

    Entries: <name>/data.pkl, and <name>/data/<key> for each storage, uncompressed.
    Raises UserError for code in the pickle, and anything for damage.
    """
    described = pickle_of(archive.namelist()) or ""
    root = described.removesuffix("data.pkl")
    order = root + "byteorder"
    if order in archive.namelist() and _entry(archive, order) != b"little":
        raise UserError(f"{path} was written on a big-endian machine, expected little-endian")
    seen: dict[str, bytes] = {}  # tensors may share a storage

    def fetch(storage: Storage) -> bytes:
        if storage.key not in seen:
            seen[storage.key] = _entry(archive, f"{root}data/{storage.key}")
        return _exactly(seen[storage.key], storage)

    return unpickle(io.BytesIO(_entry(archive, described)), fetch, str(path))[0]


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, which PyTorch never does")
    return archive.read(name)


def _exactly(content: bytes, storage: Storage) -> bytes:
    if len(content) != storage.length * storage.dtype.itemsize:
        raise ValueError(
            f"storage {storage.key} has {len(content)} bytes, expected {storage.length} of "
            f"{storage.dtype}"
        )
    return content


def read_legacy(file: BinaryIO, path: Path) -> Any:
    """As `read_zip`, from the older format.

    Five pickles: a magic number, the version of the format, the machine's sizes, the object, and
    the keys of its storages; then for each of these in turn its count (int64) and its numbers.
    """
    places: dict[str, int] = {}  # of each storage in the file
    seen: dict[str, bytes] = {}

    def fetch(storage: Storage) -> bytes:
        if storage.key not in seen:
            file.seek(places[storage.key])
            seen[storage.key] = file.read(storage.length * storage.dtype.itemsize)
        return _exactly(seen[storage.key], storage)

    def following() -> Any:
        return unpickle(file, fetch, str(path))

    magic, _ = following()
    if magic != MAGIC:
        raise UserError(f"{path} is a pickle but no PyTorch checkpoint")
    version, _ = following()
    if version != PROTOCOL:
        raise UserError(f"{path} is of PyTorch's format {version}, expected {PROTOCOL}")
    machine, _ = following()
    if not machine["little_endian"]:
        raise UserError(f"{path} was written on a big-endian machine, expected little-endian")
    tree, storages = following()
    keys, _ = following()
    size = os.fstat(file.fileno()).st_size
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(file.read(8), "little")
        places[key] = file.tell()
        end = places[key] + storage.length * storage.dtype.itemsize
        if count != storage.length or end > size:
            raise ValueError(f"storage {key} has {count} numbers, expected {storage.length}")
        file.seek(end)
    return tree
