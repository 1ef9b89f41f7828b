"""`occinv list`."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from occinv.cli import main
from occinv.config import load_config
from occinv.objectives import OBJECTIVES
from occinv.report.list_objectives import objectives_by_config, print_objectives
from occinv.report.table import AXES


def test_every_objective_has_its_row_its_paper_and_its_config() -> None:
    found = objectives_by_config()
    assert {name for name, _ in found.values()} == set(OBJECTIVES)
    for config, (name, objective) in found.items():
        assert load_config(config)["objective"]["name"] == name
        assert all(getattr(objective.axes, axis) for axis in AXES)
        if name not in ("classification", "linear_probe"):
            assert re.fullmatch(r".+ 20\d\d, arXiv:\d{4}\.\d{5}", objective.axes.paper), name


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=80)
    with console.capture() as captured:
        print_objectives(console)
    lines = captured.get().splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.split()[:2] == ["rmae", "rmae"]]
    said = " ".join(lines[place : place + 3])
    words = ("rmae", "75% removed", "the complement", "same encoder", "decoder L2", "2208.04164")
    assert [word for word in words if word not in said] == []
    assert max(map(len, lines)) <= 80
    places = [
        next(i for i, line in enumerate(lines) if line.split()[1:2] == [n])
        for n in ("mae", "beit", "cae", "finetune", "linear")
    ]
    assert places == sorted(places)  # as in OBJECTIVES
    assert lines[0].split() == ["Objective", "Config", "Paper"]
    assert main(["list"]) == 0
    assert " beit  " in capsys.readouterr().out
