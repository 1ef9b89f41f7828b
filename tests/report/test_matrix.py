"""The matrix shows each number at its axes, and rows without axes in the caption."""

from __future__ import annotations

import io
from dataclasses import replace

from example_run import COLUMNS, curves, row
from rich.console import Console

from occinv.report.matrix import print_results
from occinv.report.results import Results


def printed(results: Results) -> list[list[str]]:
    """The cells of each line of the printed table, and the first line of its caption."""
    stream = io.StringIO()
    print_results(results, Console(file=stream))
    assert max(map(len, stream.getvalue().splitlines())) <= 100
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in stream.getvalue().splitlines()
        if "|" in line or "·" in line
    ]


def grid() -> Results:
    axes = {"t1": "75% removed", "t2": "identity"}
    nothing = dict.fromkeys(("t1", "t2", "target", "measure"), "–")
    return Results(
        title="grid",
        subject="axes",
        layout="axes",
        columns=COLUMNS[:1],
        rows=[
            row("Random init", 0.5, **nothing, cka={}, paper={}, pretrain=None),
            row("a", 0.81, **axes, target="pixels", measure="pixel L2", paper={}),
            row("b", 0.82, **axes, target="EMA", measure="BYOL", paper={}),
            row("c", 0.83, **axes, target="EMA", measure="InfoNCE", paper={}, cka={}),
            row("d", **axes, target="f", measure="BYOL", status="failed", error="no loss"),
            row("e", 0.1, t1="crop", t2="crop", target="EMA", measure="BYOL", values={}),
        ],
    )


def test_each_number_is_at_its_axes() -> None:
    found = printed(grid())
    assert found[0] == ["T1 → T2, target", "pixel L2", "BYOL", "InfoNCE"]
    assert found[1] == ["75% removed → identity, pixels", "81.0 · 0.910", "", ""]
    assert found[2] == ["75% removed → identity, EMA", "", "82.0 · 0.910", "83.0 · –"]
    assert found[3] == ["75% removed → identity, f", "", "failed", ""]
    assert found[4] == ["crop → crop, EMA", "", "– · 0.910", ""]
    assert found[5] == ["Random init: 50.0 · –."]
    assert found[6][0].startswith("Cells: FT % · CKA of the pretrained")


def test_seeds_are_averaged_and_cka_is_that_of_the_pretrained_encoder() -> None:
    results = grid()
    results.rows = [row("a", 0.8, 0.82, cka={"pretrained": curves(0.6)}, paper={})]
    assert printed(results)[1][-1] == "81.0 ± 1.4 · 0.600"


def test_the_whole_grid_has_its_numbers_on_one_line() -> None:
    results, axes = grid(), {"t1": "75% removed", "t2": "the complement"}
    measures = ("pixel L2", "decoder L2", "InfoNCE", "BYOL", "cross-entropy", "smoothed L1")
    results.rows = [
        row("a", 0.8, **axes, target="EMA encoder", measure=measure, paper={})
        for measure in (*measures, "centered cross-entropy")
    ]
    results.rows[-1].target = "pixels"
    found = printed(results)
    assert found[1][1:] == 6 * ["80.0 · 0.910"]
    place = next(i for i, line in enumerate(found) if i > 1 and "80.0 · 0.910" in line)
    assert found[place].index("80.0 · 0.910") == 1 + measures.index("cross-entropy")


def test_other_results_are_a_table() -> None:
    results = replace(grid(), layout="table")
    assert "Method" in [cells[0] for cells in printed(results)]
