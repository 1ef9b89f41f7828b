"""Small files are whole and valid, and errors of the disk are one line."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest

from occinv.cli import main
from occinv.schema import UserError
from occinv.train import disk
from occinv.train.disk import disk_problem, read_json, write_json


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_json_has_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf}, "d": "NaN"})
    found = json.loads(path.read_text(), parse_constant=refuse)
    assert found == {"a": [None, 1.5, [None]], "b": {"c": None}, "d": "NaN"} == read_json(path)
    assert [each.name for each in path.parent.iterdir()] == ["file.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file.json"
    write_json(path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_json(path, 2)
    assert read_json(path) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"\0\0", "is empty"), (b"{", "is not JSON"), (b"[" * 10**6, "not JSON")],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"file\.json .*{said}") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES"])
def test_an_error_of_the_disk_says_what_to_do(name: str) -> None:
    error = OSError(getattr(errno, name), "reason", "/data/run/file")
    wrapped = RuntimeError("a thread failed")
    wrapped.__cause__ = ValueError("x")
    wrapped.__cause__.__context__ = error
    text = ValueError(
        'OUT_OF_RANGE: Error writing "x/0" in OCDBT database at local file "/data/run": Failed '
        'writing: "/data/run/file": Failed to write 9 bytes to file 7: reason '
        f"[os_error_code='{error.errno}']\nmore"
    )
    for each in (error, wrapped, text, ExceptionGroup("several", [KeyError("x"), error])):
        line = disk_problem(each)
        assert line is not None and line.startswith("cannot write: /data/run/file: ")
        assert "run the same command" in line and "\n" not in line
    for other in (ValueError("x"), OSError(errno.ENOENT, "no file", "/x"), KeyError(name + "S")):
        assert disk_problem(other) is None


def test_the_command_line_prints_the_line(monkeypatch, capsys) -> None:
    def run(options, rest) -> None:
        raise RuntimeError("a thread failed") from OSError(errno.ENOSPC, "full", "/run/x")

    monkeypatch.setattr("occinv.commands.list.run", run)
    assert main(["list"]) == 1
    said = capsys.readouterr().err
    assert said == (
        "occinv: cannot write: /run/x: No space left on device. Free some space and run the same "
        "command to continue.\n"
    )


def test_a_place_without_new_files_is_named() -> None:
    for path in (Path("/proc/file.json"), Path("/proc/folder/file.json")):
        with pytest.raises(PermissionError) as caught:
            write_json(path, 1)
        assert f"cannot write: {path}: Permission denied. Get" in str(disk_problem(caught.value))


def test_an_error_without_a_file_gets_its_name(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(OSError, match="full") as caught, disk.naming(path):
        raise OSError(errno.ENOSPC, "full")
    assert f"cannot write: {path}: No space" in str(disk_problem(caught.value))
    with pytest.raises(ValueError) as other, disk.naming(path):
        raise ValueError("x") from OSError(errno.ENOSPC, "full")
    assert f"cannot write: {path}: No space" in str(disk_problem(other.value))
