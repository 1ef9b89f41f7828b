"""benchmarks/on_accelerator.py in miniature, on CPU."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module."""
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # it would set this for good
    return importlib.import_module("on_accelerator")


def test_a_miniature_measures_every_part(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["--out", str(tmp_path / "new" / "folder"), "--minutes", "5"]) == 0
    found = json.loads((tmp_path / "new" / "folder" / "on_accelerator.json").read_text())
    assert found["environment"]["device"] == "cpu"
    (step,) = (part for name, part in found.items() if name.startswith("MAE tiny"))
    assert step["images_per_second"] == pytest.approx(step["images"] / step["seconds"])
    assert step["of_products"] == pytest.approx(step["flops"] / found["products"]["flops"])
    curves = found["loss curves"]
    assert len(curves["cpu_float32"]) == len(curves["bfloat16"]) == 5
    assert curves["cpu_float32"] != curves["bfloat16"]
    assert 0 < curves["bfloat16_difference"] < 0.1
    assert found["resumed run"] == {"losses": True, "parameters": True, "steps": 4}
    assert any("PyTorch's MAE is left out" in note for note in found["notes"])
    shown = capsys.readouterr().out
    assert "images/s" not in shown and " ms" not in shown  # ratios only


def test_parts_that_fail_or_come_too_late_are_notes(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError("no such backend\nmore")

    report = benchmark.Report(None, minutes=1)
    assert report.run("first", lambda: 3) == 3
    assert report.run("second", fail) is None
    report.longest = 61
    assert report.run("third", lambda: pytest.fail("it ran")) is None
    assert report.parts["first"] == 3
    assert report.parts["notes"][0] == "second: RuntimeError: no such backend"
    assert report.parts["notes"][1].startswith("third: left out, ")
    assert capsys.readouterr().out.startswith("note: second")
