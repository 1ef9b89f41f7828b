"""The results and the workdirs that the tests of reports start from."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from example_run import example
from example_workdirs import invariance, record, run, write
from PIL import Image

from occinv.evaluators.reconstructions import Triple
from occinv.report.results import Claim, Results


@pytest.fixture
def results() -> Results:
    """A copy of the example that the test may change."""
    return copy.deepcopy(example())


@pytest.fixture
def mae(tmp_path) -> Path:
    workdir = run(tmp_path / "mae", {"name": "mae"}, {"loss": 0.4})
    evaluated = workdir / "evaluate"
    write(evaluated / "psnr.json", [record("psnr", {"whole": 20.5, "removed": 17.5})])
    write(evaluated / "knn.json", [record("knn", {"top1": 0.61, "top5": 0.9})])
    write(evaluated / "invariance.json", [invariance(0.9)])
    (evaluated / "reconstructions").mkdir()
    for number in range(11):
        for kind in Triple._fields:
            Image.new("RGB", (2, 2)).save(evaluated / "reconstructions" / f"{number}_{kind}.png")
    return workdir


@pytest.fixture
def supervised(tmp_path) -> Path:
    workdir = run(tmp_path / "supervised", {"name": "classification"}, {"loss": 1, "top1": 0.8})
    write(workdir / "evaluate" / "invariance.json", [invariance(0.6, token="mean")])
    return workdir


@pytest.fixture
def finetuned(tmp_path, mae) -> Path:
    start = str(mae / "checkpoints" / "20")
    objective = {"name": "classification"}
    return run(tmp_path / "finetuned", objective, {"loss": 1, "top1": 0.9}, init_from=start)


@pytest.fixture
def reproduced(tmp_path, results) -> Path:
    """A folder with results.json, whose second row has pictures."""
    folder = tmp_path / "quick"
    kinds = dict.fromkeys(Triple._fields, "p/0.png")
    results.rows[1].reconstructions = [kinds]
    results.claims = [Claim("t", "mae", "r-mae†")]
    (folder / "p").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(folder / "p" / "0.png")
    write(folder / "results.json", results)
    return folder
