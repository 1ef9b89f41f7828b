"""Reads PyTorch's file formats without PyTorch and without running code (`torch/serialization.py`).

Since PyTorch 1.6 a checkpoint is a zip file; before, it was a row of pickles. In both formats a
pickle describes the tensors, and storages hold their numbers. pickle_reader.py reads the pickles.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from typing import Any

import numpy as np

from occinv.schema import UserError
from occinv.weights.pickle_reader import MAX_PICKLE, Storages, read_pickle

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_zip(archive: zipfile.ZipFile, entry: str) -> Any:
    """Read the zip format: <name>/data.pkl, and <name>/data/<key> for each storage.

    Args:
      archive: The file.
      entry: The name of data.pkl in it.

    Returns:
      The saved object, in which tensors are NumPy arrays.

    Raises:
      UserError: The pickle contains code, or the byte order is not little-endian.
      Exception: Any other, if the file is damaged.
    """
    root = entry.removesuffix("data.pkl")

    def content(name: str) -> bytes:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, but PyTorch never compresses")
        return archive.read(name)

    def load_storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
        numbers = content(f"{root}data/{key}")
        if len(numbers) != length * dtype.itemsize:
            raise ValueError(
                f"storage {key} has {len(numbers)} bytes, expected {length} numbers of {dtype}"
            )
        return np.frombuffer(numbers, dtype)

    if root + "byteorder" in archive.namelist():
        _check_byte_order(content(root + "byteorder") == b"little")
    size = os.path.getsize(archive.filename)  # type: ignore[arg-type]
    if archive.getinfo(entry).file_size > min(size, MAX_PICKLE):
        raise ValueError(f"{entry} is larger than the file or than {MAX_PICKLE} bytes")
    return read_pickle(io.BytesIO(content(entry)), Storages(load_storage, size))


def read_legacy(file: io.BufferedReader) -> Any:
    """Read the older format, with the result and the errors of `read_zip`.

    It has five pickles: a magic number, the version of the format, properties of the machine, the
    object, and the keys of its storages. For each key follow the length (int64) and the numbers.
    """
    loaded: dict[str, np.ndarray] = {}

    def load_storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
        return loaded.setdefault(key, np.zeros(length, dtype))  # filled below

    storages = Storages(load_storage, os.fstat(file.fileno()).st_size)
    if read_pickle(file, storages) != MAGIC:
        raise UserError("the pickle has no PyTorch header. Expected a PyTorch checkpoint.")
    version = read_pickle(file, storages)
    if version != PROTOCOL:
        found = version if isinstance(version, int) else type(version).__name__
        raise UserError(f"unknown format {found}. Save the file with PyTorch 1.6 or newer.")
    _check_byte_order(read_pickle(file, storages)["little_endian"])
    tree = read_pickle(file, storages)
    keys = read_pickle(file, storages)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise pickle.UnpicklingError("the keys of the storages are not strings")
    if set(keys) != set(loaded):
        raise ValueError(f"storages {sorted(keys)}, expected {sorted(loaded)}")
    for key in keys:
        storage, length = loaded[key], int.from_bytes(file.read(8), "little")
        if length != len(storage) or file.readinto(storage.view(np.uint8).data) != storage.nbytes:
            raise ValueError(f"storage {key} has {length} numbers, expected {len(storage)}")
    return tree


def _check_byte_order(is_little: bool) -> None:
    if not is_little:
        raise UserError("the numbers are big-endian. Save the file on a little-endian machine.")
