"""Checkpoint files: views of storages, dtypes, both PyTorch formats, and files to refuse."""

from __future__ import annotations

import json
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_writer import Opcodes, Tensor, opcodes, pickled, write_legacy, write_zip

from occinv.schema import UserError
from occinv.weights.checkpoint_file import read_checkpoint

NUMBERS = np.arange(24, dtype=np.float32)
WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])


def read(path: Path) -> dict[str, np.ndarray]:
    return dict(read_checkpoint(path).tree)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


@WRITERS
def test_views_of_one_storage(write: Any, tmp_path: Path) -> None:
    """Tests strides, offsets, a storage that two tensors share, and a scalar."""
    tree = {
        "plain": Tensor("0", 24, (4, 6), (6, 1)),
        "transposed": Tensor("0", 24, (6, 4), (1, 6)),
        "column": Tensor("0", 24, (4,), (6,), offset=5),
        "scalar": Tensor("0", 24, (), (), offset=23),
        "empty": Tensor("0", 24, (0, 3), (3, 1)),
        "other": Tensor("b", 2, (2,), (1,), rebuild="torch._utils\n_rebuild_tensor"),
    }
    storages = {"0": NUMBERS.tobytes(), "b": NUMBERS[7:9].tobytes()}
    found = read(write(tmp_path / "file", tree, storages))
    grid = NUMBERS.reshape(4, 6)
    expected = {"plain": grid, "transposed": grid.T, "column": grid[:, 5], "scalar": grid[3, 5]}
    expected |= {"empty": np.zeros((0, 3), np.float32), "other": NUMBERS[7:9]}
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)


LIES = {
    "past the end": Tensor("0", 24, (5, 6), (6, 1)),
    "offset": Tensor("0", 24, (4, 6), (6, 1), offset=1),
    "stride": Tensor("0", 24, (4, 6), (7, 1)),
    "negative stride": Tensor("0", 24, (4,), (-1,), offset=3),
    "negative offset": Tensor("0", 24, (4,), (1,), offset=-4),
    "negative size": Tensor("0", 24, (-4, -6), (6, 1)),
    "more than there is": Tensor("0", 24, (5, 5), (0, 0)),
    "huge": Tensor("0", 24, (10**12, 10**12), (0, 0)),
    "length": Tensor("0", 240, (240,), (1,)),
    "short length": Tensor("0", 12, (12,), (1,)),
    "axes": Tensor("0", 24, (24,), (1, 1)),
    "dtype": Tensor("0", 24, (24,), (1,), kind="Double"),
    "storage": Tensor("nowhere", 24, (24,), (1,)),
}


@WRITERS
@pytest.mark.parametrize("lie", LIES)
def test_a_lying_size_is_an_error(write: Any, lie: str, tmp_path: Path) -> None:
    path = write(tmp_path / "file", {"x": LIES[lie]}, {"0": NUMBERS.tobytes()})
    if write is write_zip and lie == "short length":
        assert "96 bytes, expected 12" in refusal(path)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("dtype", ["f2", "f8", "i8", "u1", "b1"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    value = np.array([[0, 1], [1, 0]], dtype)
    found = read(write_zip(tmp_path / "file", {"x": value}))["x"]
    np.testing.assert_array_equal(found, value, strict=True)


def test_bfloat16_in_every_format(tmp_path: Path) -> None:
    bits = (np.array([1.5, -2], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    tensor = Tensor("0", 2, (2,), (1,), kind="BFloat16")
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "b").write_bytes(struct.pack("<Q", len(header)) + header + bits.tobytes())
    np.savez(tmp_path / "c.npz", x=bits.view("V2"))
    for path in (
        write_zip(tmp_path / "a", {"x": tensor}, {"0": bits.tobytes()}),
        tmp_path / "b",
        tmp_path / "c.npz",
    ):
        found = read(path)["x"]
        assert found.dtype.name == "bfloat16"
        np.testing.assert_array_equal(found.astype(np.float32), [1.5, -2])


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def hostile(path: Path) -> dict[str, bytes]:
    """Returns pickles that would create `path`, by the name of the function that they call."""
    os_system = b"cposix\nsystem\n" + opcodes((f"touch {path}",)) + b"R"
    stack = (
        opcodes("torch._utils") + opcodes("system") + b"\x93" + opcodes((f"touch {path}",)) + b"R"
    )
    return {
        "builtins.exec": pickle.dumps(Payload(path)),
        "posix.system": pickled(Opcodes(os_system)),
        "torch.storage._load_from_bytes": pickled(
            Opcodes(b"ctorch.storage\n_load_from_bytes\n" + opcodes(("x",)) + b"R")
        ),
        "torch._utils.system": pickled({"x": Opcodes(stack)}),
        "collections.OrderedDict.fromkeys": pickled(
            Opcodes(b"ccollections\nOrderedDict.fromkeys\n" + opcodes(("x",)) + b"R")
        ),
    }


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_code_is_named_and_not_run(name: str, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    content = hostile(proof)[name]
    if name == "builtins.exec":
        pickle.loads(content)
        assert proof.exists()  # the test is valid: pickle.loads runs the code
        proof.unlink()
    (tmp_path / "bare").write_bytes(content)
    for path in (write_zip(tmp_path / "zip", content, {}), tmp_path / "bare"):
        said = refusal(path)
        assert "contains code: " in said
        assert name in said
    assert not proof.exists()


def test_known_objects_become_placeholders(tmp_path: Path) -> None:
    """Tests the arguments of a run, a NumPy scalar and a dtype."""
    namespace = b"cargparse\nNamespace\n)\x81" + opcodes({"lr": 1}) + b"b"
    dtype = b"cnumpy\ndtype\n" + opcodes(("f8", 0, 1)) + b"R" + opcodes((3, "<", None)) + b"b"
    scalar = b"cnumpy.core.multiarray\nscalar\n" + opcodes((Opcodes(dtype), "12345678")) + b"R"
    float32 = b"ctorch\nfloat32\n"
    tree = {"args": Opcodes(namespace), "best": Opcodes(scalar), "dtype": Opcodes(float32)}
    assert set(read_checkpoint(write_zip(tmp_path / "file", tree, {})).tree) == set(tree)


def test_a_dtype_cannot_be_reached(tmp_path: Path) -> None:
    """Tests a storage type as the arguments of a call that returns its first one."""
    content = b"ctorch._utils\n_rebuild_parameter\nctorch\nFloatStorage\nR"
    refusal(write_zip(tmp_path / "file", pickled(Opcodes(content)), {}))


# Opcodes that would crash Python's unpickler, run for hours or alter an object. N is None, 2
# repeats the last object, \x85 and \x86 make tuples of one and two, s sets an item, b sets a state.
ATTACKS = {
    "nested key": (b"}N" + b"\x85" * 10**6 + b"Ns", "a key that is a tuple"),
    "doubled key": (b"}N" + b"2\x86" * 200 + b"Ns", "a key that is a tuple"),
    "doubled key of an OrderedDict": (
        b"ccollections\nOrderedDict\n](](N" + b"2\x86" * 200 + b"Nee\x85R",
        "a key that is a tuple",
    ),
    "list as a key": (b"}]Ns", "a key that is a list"),
    "doubled storage": (b"N" + b"2\x86" * 200 + b"\x85Q", "a storage"),
    "doubled shape": (
        b"ctorch._utils\n_rebuild_tensor\n(NI0\nN" + b"2\x86" * 200 + b"2tR",
        "offset, shape or stride is not valid",
    ),
    "string length": (b"\x8d" + b"\xff" * 7 + b"\x7f", "expected 9223372036854775807 bytes"),
    "number": (b"\x8b\x00\x01\x00\x00" + b"\x01" * 256, "more than 128 bits"),
    "steps": (b"N0" * (2 * 10**6 + 1) + b"N", "more than 4000000 steps"),
    "copied items": (
        b"ccollections\nOrderedDict\nq\x000]q\x010h\x01(" + b"]q\x02(NNe" * 2000 + b"e0"
        + b"h\x00h\x01\x85R0" * 3000 + b"N",
        "more than 4000000 steps",
    ),
    "state of a function": (
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x09\x00\x00\x00_functionNsb",
        "state given to a function",
    ),
    "state of a type": (b"ctorch\nFloatStorage\n}b", "state given to a function"),
    "state of a list": (b"]}b", "state given to a list"),
    "call of a result": (b"cargparse\nNamespace\n)R)R", "not a function"),
    "call of text": (b"X\x17\x00\x00\x00collections.OrderedDict)R", "not a function"),
    "extension": (b"\x82\x01", "the opcode EXT1"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_at_once(attack: str, tmp_path: Path) -> None:
    content, said = ATTACKS[attack]
    path = write_zip(tmp_path / "file", b"\x80\x04" + content + b".", {})
    start = time.process_time()
    assert said in refusal(path)
    assert time.process_time() - start < 30  # the longest needs a few seconds


def test_nested_values_are_harmless(tmp_path: Path) -> None:
    """Tests a list in a list, many times, and a list that holds itself."""
    deep = b"]" * 2 * 10**5 + b"a" * (2 * 10**5 - 1)
    path = write_zip(tmp_path / "file", {"x": Opcodes(deep), "y": Opcodes(b"]q\x00h\x00a")}, {})
    assert set(read_checkpoint(path).tree) == {"x", "y"}


def test_a_tensor_and_the_class_of_an_object_cannot_be_altered(tmp_path: Path) -> None:
    tensor = opcodes(Tensor("0", 24, (24,), (1,)))
    for state in (b"}b", b"(I1\n(I2\ntcnumpy\ndtype\n)RNNtb"):
        path = write_zip(tmp_path / "file", pickled(Opcodes(tensor + state)), {"0": bytes(96)})
        assert "state given to a ndarray" in refusal(path)
    attributes = opcodes({"update": 1, "__class__": 2, "_parameters": {"w": 3}})
    known = Opcodes(b"cargparse\nNamespace\n)\x81" + attributes + b"b")
    ordered = Opcodes(b"ccollections\nOrderedDict\n)R" + attributes + b"b")
    tree = {"known": known, "class": Opcodes(b"cargparse\nNamespace\n"), "ordered": ordered}
    found = read(write_zip(tmp_path / "file", tree, {}))
    assert found["known"] == {"w": 3}
    assert found["ordered"] == {}
    assert not getattr(found["known"], "__dict__", {})
    path = write_zip(tmp_path / "file", {"x": Opcodes(b"cargparse\nNamespace\n}b")}, {})
    assert "state given to a function" in refusal(path)


def test_tensors_larger_than_the_file(tmp_path: Path) -> None:
    """Tests many tensors that share one storage, and storages that share one entry of the zip."""
    whole = Tensor("0", 10**5, (10**5,), (1,))
    path = write_zip(tmp_path / "a", {str(i): whole for i in range(9)}, {"0": bytes(4 * 10**5)})
    assert "tensors of" in refusal(path)
    copies = {kind: Tensor("0", n, (n,), (1,), kind=kind)
              for kind, n in (("Float", 10**5), ("Int", 10**5), ("Byte", 4 * 10**5))}  # fmt: skip
    path = write_zip(tmp_path / "b", copies, {"0": bytes(4 * 10**5)})
    assert "is larger than the file" in refusal(path)


@pytest.mark.parametrize("low", [b"\x80\x02", b"PK"])
def test_safetensors_whose_length_looks_like_another_format(low: bytes, tmp_path: Path) -> None:
    """Tests headers whose length, the first bytes of the file, begins as a pickle or a zip file."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}}).encode()
    length = int.from_bytes(low, "little")
    content = struct.pack("<Q", length) + header.ljust(length) + NUMBERS.tobytes()
    (tmp_path / "file").write_bytes(content)
    np.testing.assert_array_equal(read(tmp_path / "file")["x"], NUMBERS)


def bad_files(folder: Path) -> dict[str, bytes]:
    good = write_zip(folder / "good", {"x": NUMBERS}).read_bytes()
    legacy = write_legacy(folder / "legacy", {"x": NUMBERS}).read_bytes()
    np.savez(folder / "good.npz", x=NUMBERS)
    np.savez(folder / "object.npz", x=np.array([Path()], object))
    npz = (folder / "good.npz").read_bytes()
    header = json.dumps({"x": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}}).encode()
    tensors = struct.pack("<Q", len(header)) + header + NUMBERS.tobytes()
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("readme", "hello")
    flipped = bytearray(good)
    flipped[good.index(NUMBERS.tobytes()) + 9] ^= 1
    return {
        "text": b"not weights at all\n",
        "empty": b"",
        "zip": (folder / "other.zip").read_bytes(),
        "pickle": pickle.dumps([1, 2]),
        "object": (folder / "object.npz").read_bytes(),
        "flipped": bytes(flipped),
        **{f"{n}-cut{i}": c[: len(c) * i // 8] for i in (1, 4, 7)
           for n, c in (("zip", good), ("legacy", legacy), ("npz", npz), ("st", tensors))},
    }  # fmt: skip


def test_bad_files(tmp_path: Path) -> None:
    for name, content in bad_files(tmp_path).items():
        path = tmp_path / f"bad-{name}"
        path.write_bytes(content)
        refusal(path)
    assert "folder" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", bytes(100))
        archive.infolist()[0].file_size = 2**31  # as its directory says
    assert "unpacks to 2 GiB" in refusal(path)


def test_a_checkpoint_in_parts(tmp_path: Path) -> None:
    """transformers writes large checkpoints so, with an index."""
    arrays = {"a": NUMBERS, "b": NUMBERS[3:5], "c": NUMBERS[:1]}
    places = {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}
    for part in set(places.values()):
        inside = {name: arrays[name] for name in arrays if places[name] == part}
        save_file(inside, tmp_path / part)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 3}, "weight_map": places}))
    for path in (index, tmp_path):
        found = read(path)
        assert list(found) == list(arrays)
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value)
    index.write_text(json.dumps({"weight_map": places | {"d": "2.safetensors"}}))
    assert "the parts lack 1 arrays, such as 'd'" in refusal(index)
    for place in ("../2.safetensors", "3.safetensors", "..", 7, None, ""):
        index.write_text(json.dumps({"weight_map": places | {"b": place}}))
        assert "is not beside it. Download all parts." in refusal(index), place
    for content in ("[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "", "{"):
        index.write_text(content)
        refusal(index)
