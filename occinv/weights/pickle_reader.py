"""Reads the pickles of PyTorch's checkpoints. It builds data only and cannot run code.

A pickle is a program for a stack machine. Python's unpickler lets it call whatever it can import,
hash its keys, and set attributes. `_Machine` instead executes the opcodes on plain data: numbers,
strings, tuples, lists, dicts and arrays. The functions that rebuild tensors have their own result;
calls of other known names, such as the arguments of the run or the modules of DALL·E's encoder,
give a `_Placeholder`. Any other name is an error.

Memory and time are bounded by the size of the file. No object is hashed, compared or formatted
unless it is a string or a number, so that deeply nested objects are harmless.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from occinv.schema import UserError

MAX_PICKLE = 2**26  # bytes; those of published checkpoints with optimizer states have some 2**20
MAX_STEPS = 4 * 10**6  # opcodes, and items that they copy
MAX_REUSE = 8  # bytes of all tensors over those of the file: tensors may share a storage
STORAGES = {
    "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16,
    "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8,
    "Bool": np.bool_, "ComplexFloat": np.complex64, "ComplexDouble": np.complex128,
    "Untyped": np.uint8,
}  # fmt: skip
REBUILD_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
REBUILD_PARAMETER = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
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
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CREATED: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: _Placeholder(),
}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
WITH_ARGUMENT = {  # opcodes that push the argument that pickletools decodes
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
KEYS = (str, bytes, int, float, type(None))  # of mappings


class Storages:
    """The storages of a file. Together they are not larger than the file.

    Attributes:
      used: Bytes of all tensors so far.
    """

    def __init__(self, load: Callable[[str, np.dtype, int], np.ndarray], file_size: int) -> None:
        """`load` returns the storage of a key, dtype and length; `file_size` counts bytes."""
        self._load = load
        self._found: dict[tuple[str, str, int], np.ndarray] = {}
        self._file_size = file_size
        self._size = self.used = 0

    def storage(self, key: str, kind: str, length: int) -> np.ndarray:
        """Return the storage `key` of `length` numbers; tensors may share it."""
        where = key, kind, length
        if where not in self._found:
            dtype = np.dtype(STORAGES[kind])
            self._size += length * dtype.itemsize
            if self._size > self._file_size:
                raise ValueError(f"storage {key} of {length} numbers is larger than the file")
            self._found[where] = self._load(key, dtype, length)
        return self._found[where]

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> np.ndarray:
        """Return a view of a storage, checked so that nothing outside of it is ever read."""
        if not (
            isinstance(storage, np.ndarray)
            and isinstance(shape, (tuple, list))
            and isinstance(stride, (tuple, list))
            and len(shape) == len(stride) <= 32
            and all(isinstance(n, int) and 0 <= n < 2**63 for n in (offset, *shape, *stride))
        ):
            raise pickle.UnpicklingError("a tensor whose offset, shape or stride is not valid")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        size = math.prod(shape)
        if size and (last >= len(storage) or size > len(storage)):
            raise pickle.UnpicklingError(
                f"a tensor of shape {tuple(shape)} from element {offset} of {len(storage)}"
            )
        self.used += size * storage.itemsize
        if self.used > MAX_REUSE * self._file_size:
            raise pickle.UnpicklingError(
                f"tensors of {self.used} bytes in a file of {self._file_size} bytes"
            )
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


class _Placeholder(dict):
    """Replaces any object that is not data. Of a module it keeps parameters and submodules."""

    __slots__ = ()


class _Name(str):
    """A name that a pickle imports, with its module."""

    __slots__ = ()


def read_pickle(file: BinaryIO, storages: Storages) -> Any:
    """Return the next object in `file`, in which tensors are views of `storages`.

    Raises:
      UserError: The pickle contains code.
      Exception: Any other, if the pickle is damaged or hostile.
    """
    machine = _Machine(storages)
    for opcode, argument, _ in pickletools.genops(file):
        machine.execute(opcode.name, argument)
    return machine.pop()


class _Machine:
    """The stack machine of a pickle, with a stack, positions of marks in it, and a memo."""

    def __init__(self, storages: Storages) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def execute(self, opcode: str, argument: Any) -> None:
        """Execute one opcode of `pickletools`."""
        self.count(1)
        if opcode in WITH_ARGUMENT:
            if isinstance(argument, int) and argument.bit_length() > 128:
                raise pickle.UnpicklingError("a number of more than 128 bits")
            self.stack.append(argument)
        elif opcode in CONSTANTS:
            self.stack.append(CONSTANTS[opcode])
        elif opcode in CREATED:
            self.stack.append(CREATED[opcode]())
        elif opcode in TUPLES:
            items = [self.pop() for _ in range(TUPLES[opcode])]
            self.stack.append(tuple(reversed(items)))
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, opcode, None)
            if method is None:
                raise pickle.UnpicklingError(f"the opcode {opcode}, which PyTorch does not write")
            method() if argument is None else method(argument)

    def count(self, steps: int) -> None:
        """Add to the steps so far."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise pickle.UnpicklingError(f"a pickle of more than {MAX_STEPS} steps")

    def pop(self) -> Any:
        """Remove and return the last object."""
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Remove and return the objects after the last mark."""
        start = self.marks.pop()
        items, self.stack[start:] = self.stack[start:], []
        return items

    # An opcode is executed by the method of its name.

    def MARK(self) -> None:
        self.marks.append(len(self.stack))

    def POP(self) -> None:
        at_mark = self.marks and self.marks[-1] == len(self.stack)
        _ = self.marks.pop() if at_mark else self.stack.pop()

    def POP_MARK(self) -> None:
        self.pop_mark()

    def DUP(self) -> None:
        self.stack.append(self.stack[-1])

    def TUPLE(self) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def LIST(self) -> None:
        self.stack.append(self.pop_mark())

    def DICT(self) -> None:
        self.stack.append(_with_items({}, self.pop_mark()))

    def FROZENSET(self) -> None:
        self.pop_mark()
        self.stack.append(_Placeholder())

    def APPEND(self) -> None:
        self._extend([self.pop()])

    def APPENDS(self) -> None:
        self._extend(self.pop_mark())

    def ADDITEMS(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target += items
        elif type(target) is not _Placeholder:
            raise pickle.UnpicklingError("items appended to an object that is not a list")

    def SETITEM(self) -> None:
        value, key = self.pop(), self.pop()
        _with_items(self.stack[-1], [key, value])

    def SETITEMS(self) -> None:
        items = self.pop_mark()
        _with_items(self.stack[-1], items)

    def GLOBAL(self, names: str) -> None:
        self._import(*names.split(" ", 1))

    def STACK_GLOBAL(self) -> None:
        name, module = self.pop(), self.pop()
        self._import(module, name)

    def _import(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str) and len(module + name) < 1000):
            raise pickle.UnpicklingError("an imported name that is not a short string")
        module = {"__builtin__": "builtins"}.get(module, module)  # the name in protocol 2
        whole = f"{module}.{name}"
        is_storage = module in ("torch", "torch.storage", "torch.cuda") and (
            name.endswith("Storage") and name.removesuffix("Storage") in STORAGES
        )
        is_known = whole in ("collections.OrderedDict", *REBUILD_TENSOR, *REBUILD_PARAMETER)
        if not (is_storage or is_known or name in PLACEHOLDERS.get(module, ())):
            raise UserError(
                f"contains code: {ascii(whole)[1:-1][:200]}. Expected tensors only; nothing was "
                "executed."
            )
        self.stack.append(_Name(whole))

    def REDUCE(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(self._call(function, arguments))

    NEWOBJ = REDUCE

    def NEWOBJ_EX(self) -> None:
        self.pop()  # keyword arguments
        self.REDUCE()

    def OBJ(self) -> None:
        function, *arguments = self.pop_mark()
        self.stack.append(self._call(function, arguments))

    def INST(self, names: str) -> None:
        arguments = self.pop_mark()
        self.GLOBAL(names)
        self.stack.append(self._call(self.pop(), arguments))

    def _call(self, function: Any, arguments: Any) -> Any:
        """Return what replaces the result of a call."""
        if type(function) is not _Name or not isinstance(arguments, (tuple, list)):
            raise pickle.UnpicklingError("a call of an object that is not a function")
        if function in REBUILD_TENSOR:
            return self.storages.tensor(*arguments[:4])
        if function in REBUILD_PARAMETER:
            return arguments[0]
        if function != "collections.OrderedDict":
            return _Placeholder()
        pairs = arguments[0] if arguments else []
        self.count(len(pairs))
        return _with_items({}, [part for key, value in pairs for part in (key, value)])

    def BUILD(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if type(target) is _Placeholder:
            for name in ("_parameters", "_modules"):
                part = state.get(name) if isinstance(state, dict) else None
                if isinstance(part, dict):
                    self.count(len(part))
                    target.update(part)
        elif type(target) is not dict:  # that of an OrderedDict holds versions of modules
            raise pickle.UnpicklingError(f"state given to a {_kind(target)}")

    def PERSID(self, pid: str) -> None:
        raise pickle.UnpicklingError("a storage described by text")

    def BINPERSID(self) -> None:
        """Push the storage that ("storage", type, key, device, length) describes.

        Before PyTorch 1.6 a view follows, and a class of modules comes with its source code:
        ("module", class, file, code).
        """
        pid = self.pop()
        if not isinstance(pid, tuple) or not 2 <= len(pid) <= 6:
            raise pickle.UnpicklingError("a storage that is not described by a tuple")
        kind, type_, *rest = pid
        if type(type_) is _Name and kind == "module":
            self.stack.append(type_)
            return
        key, _, length, *view = rest if len(rest) > 2 else (None, None, None)
        name = type_.rpartition(".")[2].removesuffix("Storage") if type(type_) is _Name else ""
        is_storage = kind == "storage" and name in STORAGES and (not view or view[0] is None)
        if not (is_storage and isinstance(key, str) and isinstance(length, int) and length >= 0):
            raise pickle.UnpicklingError("a storage that is not described as one")
        self.stack.append(self.storages.storage(key, name, length))


def _with_items(target: Any, items: list[Any]) -> Any:
    """Set alternating keys and values in a mapping."""
    if type(target) not in (dict, _Placeholder):
        raise pickle.UnpicklingError(f"keys given to a {_kind(target)}")
    for key in items[::2]:
        if not isinstance(key, KEYS):
            raise pickle.UnpicklingError(f"a key that is a {_kind(key)}")
    target.update(zip(items[::2], items[1::2], strict=True))
    return target


def _kind(value: Any) -> str:
    return "function" if type(value) is _Name else type(value).__name__.strip("_")
