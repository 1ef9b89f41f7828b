"""Unpickles the description of tensors in a PyTorch file, and runs nothing that it names.

A pickle is a program that may call whatever it can import. Here it can import what rebuilds
tensors, and the inert stand-ins below for what official checkpoints carry besides (the arguments
of the run) and for the modules of DALL·E's encoder, which was saved whole; everything else is
refused by name before anything is called.
"""

from __future__ import annotations

import collections
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from occinv.schema import UserError
from occinv.weights.stored import Stored

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
DTYPES = (
    *("float16", "half", "float32", "float", "float64", "double", "bfloat16", "bool"),
    *("int8", "uint8", "int16", "short", "int32", "int", "int64", "long"),
    *("complex64", "complex128", "Size", "device"),
)
INERT = {
    "argparse.Namespace",
    "_codecs.encode",  # how protocol 2 writes the bytes of a NumPy scalar
    "builtins.set",
    "collections.defaultdict",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.ndarray",
    *(f"torch.{name}" for name in DTYPES),
}  # fmt: skip
MODULES = {
    *(f"dall_e.{name}" for name in ("encoder.Encoder", "encoder.EncoderBlock", "utils.Conv2d")),
    *(f"torch.nn.modules.{name}" for name in
      ("container.Sequential", "activation.ReLU", "pooling.MaxPool2d", "linear.Identity")),
}  # fmt: skip
MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


class Storage(NamedTuple):
    """Where the numbers of tensors lie: in the part `key` of the file, `length` of one dtype."""

    key: str
    dtype: np.dtype
    length: int


class _Inert:
    """Takes the place of an object that is not a tensor: accepts everything and holds nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Forgets `item`."""


class _Module(dict):
    """Takes the place of a PyTorch module: its parameters and the modules in it, by name."""

    def __new__(cls, *_: Any, **__: Any) -> _Module:
        return dict.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        for part in ("_parameters", "_modules"):
            self.update(state.get(part, {}))


class _Call:
    """A function that a pickle may call but not alter."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("state given to a function")


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, fetch: Callable[[Storage], bytes], path: str) -> None:
        super().__init__(file)
        self.fetch, self.path = fetch, path
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module)  # as protocol 2 writes it
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return collections.OrderedDict
        if full in ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"):
            return _Call(self._tensor)
        if full in (
            "torch._utils._rebuild_parameter",
            "torch._utils._rebuild_parameter_with_state",
        ):
            return _Call(lambda tensor, *_: tensor)
        if module in ("torch", "torch.storage", "torch.cuda") and name in STORAGES:
            return _StorageType(np.dtype(STORAGES[name]))
        if full in INERT:
            return type(name, (_Inert,), {"__slots__": ()})  # its own, so that nothing is shared
        if full in MODULES:
            return type(name, (_Module,), {})
        raise UserError(
            f"{self.path} contains code: {ascii(full)[1:-1]}; expected tensors only, which loading "
            "does not run"
        )

    def persistent_load(self, pid: Any) -> Storage:
        """A storage: ("storage", type, key, device, count), and before PyTorch 1.6 a view.

        Before 1.6 also a class of modules, with its source code: ("module", class, file, code).
        """
        if pid[0] == "module" and isinstance(pid[1], type) and issubclass(pid[1], _Module):
            return pid[1]  # type: ignore[return-value]
        kind, type_, key, _, count, *view = pid
        wrong = kind != "storage" or not isinstance(type_, _StorageType) or view not in ([], [None])
        if wrong or not (isinstance(key, str) and isinstance(count, int) and count >= 0):
            raise pickle.UnpicklingError(f"a storage described as {str(pid)[:80]}")
        return self.storages.setdefault(key, Storage(key, type_.dtype, count))

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
        """A view of a storage. Checked here, so that nothing outside of it is ever read."""
        numbers = (offset, *size, *stride)
        if (
            not isinstance(storage, Storage)
            or not all(isinstance(n, int) and n >= 0 for n in numbers)
            or len(size) != len(stride)
            or len(size) > 32
        ):
            raise pickle.UnpicklingError(f"a tensor of size {size} and stride {stride}")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        elements = int(np.prod(np.array(size, object))) if size else 1
        if elements and (last >= storage.length or elements > storage.length):
            raise pickle.UnpicklingError(
                f"a tensor of size {tuple(size)} from element {offset} of {storage.length}"
            )

        def read() -> np.ndarray:
            flat = np.frombuffer(self.fetch(storage), storage.dtype)[offset:]
            strides = [step * storage.dtype.itemsize for step in stride]
            return np.lib.stride_tricks.as_strided(flat, size, strides, writeable=False)

        return Stored(read)


def unpickle(
    file: BinaryIO, fetch: Callable[[Storage], bytes], path: str
) -> tuple[Any, dict[str, Storage]]:
    """The next object in `file`, its tensors as `Stored`, and the storages it names, by key.

    Args:
      fetch: the length · itemsize bytes of a storage; called when a tensor is read.
      path: named in errors.

    Raises:
      UserError: the pickle names something that is not needed to describe tensors.
      Exception: of any kind, where it is damaged.
    """
    start = file.tell()
    # A dry pass: it finds cut strings before memory is taken for their pretended length, and
    # places in the memo so high that the table for them would not fit.
    for number, (code, argument, _) in enumerate(pickletools.genops(file)):
        if code.name in MEMO and argument > number:  # type: ignore[operator]
            raise pickle.UnpicklingError(f"place {argument} in the memo after {number} steps")
    file.seek(start)
    unpickler = _Unpickler(file, fetch, path)
    return unpickler.load(), unpickler.storages
