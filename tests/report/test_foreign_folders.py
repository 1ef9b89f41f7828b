"""Reports of folders that are foreign or damaged."""

from __future__ import annotations

import json
import math
import os
import re

import pytest
from example_workdirs import run, write

from occinv.cli import main
from occinv.report.compare import compare
from occinv.report.matrix import print_results
from occinv.schema import UserError


def test_the_class_of_a_foreign_run_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    workdir = run(tmp_path / "run", {"name": "foreign:Objective"}, {"loss": 0.4})
    (row,) = compare([workdir]).rows
    assert (row.t1, row.measure) == ("unknown", "unknown")
    config = json.loads((workdir / "config.json").read_text())
    config["axes"] = {"t1": "noise", "t2": "noise", "target": "average", "measure": "L2"}
    write(workdir / "config.json", config)
    (row,) = compare([workdir]).rows
    assert (row.t1, row.measure) == ("noise", "L2")


HUGE = 10**400


@pytest.mark.parametrize(
    ("file", "place", "value", "said"),
    [
        ("quick/results.json", ("seconds",), HUGE, "not a finite number"),
        ("quick/results.json", ("seconds",), math.nan, "NaN is not a finite number"),
        ("quick/results.json", ("settings", "num_test"), 0, "settings.num_test is 0"),
        ("quick/results.json", ("rows", 0, "values", "finetune", 0), 1.5, "FT % of .* is 1.5"),
        ("quick/results.json", ("rows", 0, "hits", "finetune"), ["3:zz"], "is damaged"),
        ("quick/results.json", ("rows", 1, "cka", "pretrained", "values"), [[]], "another shape"),
        ("mae/config.json", ("experiment", "objective"), {}, "objective.name is missing"),
        ("mae/config.json", ("experiment",), "x", "the config='x', expected"),
        ("mae/config.json", ("experiment", "encoder", "width"), 7, "config.json: .*7"),
        ("mae/evaluate/knn.json", (0, "values", "top1"), 2, "damaged record of knn"),
        ("mae/evaluate/knn.json", (0, "images", "count"), 0, "damaged record of knn"),
        ("mae/evaluate/knn.json", (0, "details"), {"hits": "x"}, "damaged record of knn"),
        ("mae/evaluate/invariance.json", (0, "details"), {}, "damaged record of invariance"),
        ("mae/evaluate/invariance.json", (0, "details", "blocks"), [1], "another shape"),
        ("mae/evaluate/invariance.json", (0, "details", "ratios"), "x", "record of invariance"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, mae, reproduced, file, place, value, said, capsys):
    path = tmp_path / file
    content = json.loads(path.read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(content))
    assert main(["report", "--markdown", str(tmp_path / file.split("/")[0])]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert path.name in line and re.search(said, line)


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl"])
def test_a_folder_in_place_of_a_file_is_named(tmp_path, mae, reproduced, name):
    path = (reproduced if name == "results.json" else mae) / name
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=rf"{name} cannot be read: it is not a file"):
        compare([path.parent])


def test_a_pipe_is_no_file(mae):
    path = mae / "result.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"result\.json cannot be read: it is not a file"):
        compare([mae])


def test_control_codes_of_a_foreign_folder_are_not_printed(reproduced, capsys):
    path = reproduced / "results.json"
    content = json.loads(path.read_text())
    content["title"] = content["rows"][0]["name"] = "a\x1b[31m\nb"
    path.write_text(json.dumps(content))
    assert main(["report", "--markdown", str(reproduced)]) == 0
    print_results(compare([reproduced]))
    assert "\x1b" not in (out := capsys.readouterr().out) and "| a [31m b |" in out
