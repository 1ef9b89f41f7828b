"""Reads PyTorch's file formats without PyTorch and without running code (`torch/serialization.py`).

Since PyTorch 1.6 a checkpoint is a zip file; before, it was a row of pickles. In both formats a
pickle describes the tensors, and storages hold their numbers.

A pickle is a program that may call whatever it can import. `_Unpickler` replaces every import: the
functions that rebuild tensors by its own, other known names by placeholders. It knows what official
checkpoints hold besides tensors, such as the arguments of the run, and the modules of DALL·E's
encoder, which was saved whole. Any other name is an error before anything is called.
"""

from __future__ import annotations

import collections
import functools
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from occinv.schema import UserError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
STORAGES = {
    "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16,
    "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8,
    "Bool": np.bool_, "ComplexFloat": np.complex64, "ComplexDouble": np.complex128,
    "Untyped": np.uint8,
}  # fmt: skip
REBUILD_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2")
REBUILD_PARAMETER = ("_rebuild_parameter", "_rebuild_parameter_with_state")
PLACEHOLDERS = {
    "_codecs": ("encode",),  # protocol 2 writes the bytes of a NumPy scalar by it
    "argparse": ("Namespace",),
    "builtins": ("set",),
    "collections": ("defaultdict",),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "torch": (
        *("float16", "half", "float32", "float", "float64", "double", "bfloat16", "bool"),
        *("int8", "uint8", "int16", "short", "int32", "int", "int64", "long"),
        *("complex64", "complex128", "Size", "device"),
    ),
    "dall_e.encoder": ("Encoder", "EncoderBlock"),
    "dall_e.utils": ("Conv2d",),
    "torch.nn.modules.activation": ("ReLU",),
    "torch.nn.modules.container": ("Sequential",),
    "torch.nn.modules.linear": ("Identity",),
    "torch.nn.modules.pooling": ("MaxPool2d",),
}
LoadStorage = Callable[[str, np.dtype, int], np.ndarray]  # of key, dtype and length


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
    return _unpickle(io.BytesIO(content(entry)), load_storage)


def read_legacy(file: io.BufferedReader) -> Any:
    """Read the older format, with the result and the errors of `read_zip`.

    It has five pickles: a magic number, the version of the format, properties of the machine, the
    object, and the keys of its storages. For each key follow the length (int64) and the numbers.
    """
    storages: dict[str, np.ndarray] = {}
    file_size = os.fstat(file.fileno()).st_size

    def load_storage(key: str, dtype: np.dtype, length: int) -> np.ndarray:
        if length * dtype.itemsize > file_size:
            raise ValueError(f"storage {key} of {length} numbers is larger than the file")
        return storages.setdefault(key, np.zeros(length, dtype))  # filled below

    if _unpickle(file, load_storage) != MAGIC:
        raise UserError("the pickle has no PyTorch header. Expected a PyTorch checkpoint.")
    version = _unpickle(file, load_storage)
    if version != PROTOCOL:
        raise UserError(f"unknown format {version}. Save the file with PyTorch 1.6 or newer.")
    _check_byte_order(_unpickle(file, load_storage)["little_endian"])
    tree = _unpickle(file, load_storage)
    keys = _unpickle(file, load_storage)
    if set(keys) != set(storages):
        raise ValueError(f"storages {sorted(keys)}, expected {sorted(storages)}")
    for key in keys:
        storage, length = storages[key], int.from_bytes(file.read(8), "little")
        if length != len(storage) or file.readinto(storage.view(np.uint8).data) != storage.nbytes:
            raise ValueError(f"storage {key} has {length} numbers, expected {len(storage)}")
    return tree


def _check_byte_order(is_little: bool) -> None:
    if not is_little:
        raise UserError("the numbers are big-endian. Save the file on a little-endian machine.")


def _unpickle(file: BinaryIO, load_storage: LoadStorage) -> Any:
    """Return the next object in `file`; `load_storage` returns the storages that it names."""
    start = file.tell()
    # The first pass runs nothing. It finds incomplete strings before memory of their claimed length
    # is allocated, and memo indices so high that the table for them would not fit in memory.
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:  # type: ignore[operator]
            raise pickle.UnpicklingError(f"memo index {argument} after {count} opcodes")
    file.seek(start)
    return _Unpickler(file, load_storage).load()


class _Placeholder(dict):
    """Replaces any object that is not a tensor. Of a module it keeps parameters and submodules."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __new__(cls, *_: Any, **__: Any) -> _Placeholder:
        return dict.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state.get("_parameters", {}))
            self.update(state.get("_modules", {}))

    def append(self, item: Any) -> None:
        pass


class _Call:
    """A function that a pickle may call but not alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state given to a function")


class _StorageType(str):
    """A key of STORAGES. It is not a tuple: the arguments of a call could expose what it holds."""

    __slots__ = ()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, load_storage: LoadStorage) -> None:
        super().__init__(file)
        self.load_storage = functools.cache(load_storage)  # tensors may share a storage

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # the name in protocol 2
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in REBUILD_TENSOR:
            return _Call(_tensor)
        if module == "torch._utils" and name in REBUILD_PARAMETER:
            return _Call(lambda tensor, *_: tensor)
        kind = name.removesuffix("Storage")
        if module in ("torch", "torch.storage", "torch.cuda") and kind != name and kind in STORAGES:
            return _StorageType(kind)
        if name in PLACEHOLDERS.get(module, ()):
            return type(name, (_Placeholder,), {})  # a new class, so that nothing is shared
        raise UserError(
            f"contains code: {ascii(f'{module}.{name}')[1:-1]}. Expected tensors only; nothing was "
            "executed."
        )

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that `pid` describes: ("storage", type, key, device, length).

        Before PyTorch 1.6 a view follows, and a class of modules comes with its source code:
        ("module", class, file, code).
        """
        if pid[0] == "module" and isinstance(pid[1], type) and issubclass(pid[1], _Placeholder):
            return pid[1]
        kind, type_, key, _, length, *view = pid
        wrong = kind != "storage" or not isinstance(type_, _StorageType) or view not in ([], [None])
        if wrong or not (isinstance(key, str) and isinstance(length, int) and length >= 0):
            raise pickle.UnpicklingError(f"a storage described as {str(pid)[:80]}")
        return self.load_storage(key, np.dtype(STORAGES[type_]), length)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> np.ndarray:
    """Return a view of a storage, checked so that nothing outside of it is ever read."""
    if (
        not isinstance(storage, np.ndarray)
        or not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride))
        or len(shape) != len(stride)
        or len(shape) > 32
    ):
        raise pickle.UnpicklingError(f"a tensor of shape {shape} and stride {stride}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    size = math.prod(shape)
    if size and (last >= len(storage) or size > len(storage)):
        raise pickle.UnpicklingError(
            f"a tensor of shape {tuple(shape)} from element {offset} of {len(storage)}"
        )
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)
