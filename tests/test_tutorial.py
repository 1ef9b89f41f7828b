"""The tutorial runs as it stands, with a few steps of training, and has the outputs of one run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from occinv.config import load_config
from occinv.data.embedded import digits

NOTEBOOK = json.loads((Path(__file__).parent.parent / "docs" / "tutorial.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = "\n".join("".join(cell["source"]) for cell in CELLS)
    short = program.replace(":quickstart", ":smoke").replace(
        "(0.1, 0.25, 0.5, 0.75, 0.9)", "(0.75,)"
    )
    assert short.count(":smoke") == 2
    assert short.count("(0.75,)") == 1
    names: dict = {}
    try:
        exec(short, names)
    finally:
        plt.close("all")
    assert names["visible"].sum(1).tolist() == [4] * 8  # of 16 patches
    assert [step for step, _ in names["losses"]] == [2, 4, 6, 8]
    assert set(names["curves"]) == {
        *("mae", "supervised", "untrained, class token", "untrained, mean token"),
    }
    for curve in names["curves"].values():
        assert curve.shape == (1, 4)
        assert np.all(np.abs(curve) <= 1)
    assert names["by_block"].lines[0].get_ydata().shape == (4,)


def test_the_outputs_are_those_of_one_run() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    steps = re.search(r"Outcome\(step=(\d+), steps=\1,", printed)
    config = load_config("mae:quickstart")
    epochs, batch = config["train"]["duration"]["epochs"], config["train"]["batch_size"]
    assert steps and int(steps[1]) == -(-epochs * len(digits(train=True)) // batch)


def test_the_text_quotes_the_outputs() -> None:
    printed = "".join("".join(o.get("text", "")) for cell in CELLS for o in cell["outputs"])
    text = "".join("".join(cell["source"]) for cell in NOTEBOOK["cells"])
    found = re.findall(r"cka ([\d.]+) \(floor 0.000 to ([\d.]+)\)", printed)
    (mae, mae_floor), (supervised, supervised_floor) = (
        (f"{float(x):.2f}" for x in f) for f in found
    )
    assert f"a CKA of {mae} " in text
    assert re.search(rf"the supervised\s+one {supervised}\.", text)
    assert f"is {mae_floor} and {supervised_floor}." in text
