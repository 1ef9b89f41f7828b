"""A table of batch sizes: what the log of a training tells, the matrix, the figure, the verdict."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from example_run import curves as cka_curves
from example_run import row
from rich.console import Console

from occinv.report.batch_size import by_batch_size, curves
from occinv.report.course import COLUMNS, WINDOW, course_of
from occinv.report.findings import findings
from occinv.report.html import render
from occinv.report.matrix import markdown, print_results
from occinv.report.results import Column, Results, Row

EPOCHS, STEPS = "equal epochs", "equal steps"
ACCURACIES = {  # by curve, batch size and budget, for each seed
    ("MAE", 16): (0.50, 0.51, 0.52),
    ("MAE", 64): (0.60, 0.612, 0.621),
    ("MAE", 256): (0.60, 0.613, 0.62),
    ("MAE", 1024): (0.40, 0.411, 0.42),
    ("BYOL", 16): (0.50, 0.55, 0.45),
    ("BYOL", 64): (0.51, 0.54, 0.46),
}


def batch_row(name: str, size: int, budgets: list[str], values: tuple[float, ...]) -> Row:
    key = f"{name}_{size}" + ("_steps" if budgets == [STEPS] else "")
    found = row(f"{name}, {size}", *values, paper={}, key=key, batch_size=size)
    found.curve, found.budgets = name, budgets
    found.values |= {"loss": [0.1234] * len(values), "spikes": [2] * len(values), "speed": [1000.4]}
    found.cka = {"pretrained": cka_curves(0.5)}
    return found


def results() -> Results:
    rows = [
        batch_row(name, size, [EPOCHS, STEPS] if size == 16 else [EPOCHS], values)
        for (name, size), values in reversed(ACCURACIES.items())
    ]
    rows.append(batch_row("MAE", 64, [STEPS], (0.50, 0.51, 0.521)))
    columns = [Column("finetune", "FT %", "%"), *COLUMNS]
    return Results("batch", columns, rows, layout="batch")


def test_a_curve_has_its_rows_by_batch_size_and_both_budgets_start_alike() -> None:
    found = {(c.objective, c.budget): [r.key for r in c.rows] for c in curves(results())}
    assert found == {
        ("MAE", EPOCHS): ["MAE_16", "MAE_64", "MAE_256", "MAE_1024"],
        ("BYOL", EPOCHS): ["BYOL_16", "BYOL_64"],
        ("MAE", STEPS): ["MAE_16", "MAE_64_steps"],
    }


def test_the_verdict_says_up_to_which_batch_size_an_objective_gains() -> None:
    texts = [found.claim for found in findings(results()) if "equal" in found.claim]
    assert sorted(texts) == [
        "BYOL, equal epochs: FT % does not gain significantly above batch size 16",
        "MAE, equal epochs: FT % gains significantly up to batch size 64, and falls significantly "
        "at 1024",
        "MAE, equal steps: FT % does not gain significantly above batch size 16",
    ]
    details = next(f.details for f in findings(results()) if "at 1024" in f.claim)
    assert len(details) == 3
    assert details[0].startswith("MAE, 64: 61.1 %, 10.1 points above MAE, 16 (51.0 %)")


def test_the_matrix_has_a_line_for_each_curve() -> None:
    stream = io.StringIO()
    print_results(results(), Console(file=stream))
    assert max(map(len, stream.getvalue().splitlines())) <= 100
    lines = markdown(results()).splitlines()
    assert lines[0] == "| Objective |  | 16 | 64 | 256 | 1024 |"
    line = next(line for line in lines if line.startswith("| MAE<br>(equal steps)"))
    _, _, names, first, second, third, _, _ = (cell.strip() for cell in line.split("|"))
    assert names.split("<br>")[0] == "FT %"
    assert first.split("<br>") == [
        *("51.0 ± 1.0", "–", "0.500", "0.123 ± 0.000", "–, 2 ± 0, –", "1000")
    ]
    assert second.startswith("51.0")
    assert third == ""


def test_every_objective_has_its_own_line() -> None:
    names = [f"method {number}" for number in range(12)]
    rows = [batch_row(name, 16, [EPOCHS], (0.5, 0.6)) for name in names]
    figure = by_batch_size(dataclasses.replace(results(), rows=rows))
    assert figure is not None
    lines = [bars.lines[0] for bars in figure.axes[0].containers]
    found = {(x.get_color(), x.get_marker(), x.get_fillstyle()) for x in lines}
    assert len(found) == len(lines) == len(names)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names  # there is one budget


def test_random_initialization_is_a_line_of_the_figure_and_of_the_matrix() -> None:
    random = row("Random init", 0.3, 0.4, 0.35, paper={}, pretrain=None, cka={})
    with_it = dataclasses.replace(results(), rows=[*results().rows, random])
    figure = by_batch_size(with_it)
    assert figure is not None
    dotted = [[x for x in axes.lines if x.get_linestyle() == ":"] for axes in figure.axes]
    assert [len(lines) for lines in dotted] == [1, 0, 1, 0]  # accuracy, speed, by budget
    assert dotted[0][0].get_ydata() == pytest.approx([35, 35])
    last = next(x for x in markdown(with_it).splitlines() if x.startswith("| Random init"))
    assert last.split("|")[1].strip() == "Random init<br>(not pretrained)"
    assert last.split("|")[3].strip().startswith("35.0 ± 5.0<br>–")
    shown = [" ".join(render(each, ".").split()) for each in (with_it, results())]
    assert ["The dotted line is Random init." in page for page in shown] == [True, False]
    claims = [found.claim for found in findings(with_it)]
    assert claims == [found.claim for found in findings(results())]  # nothing is compared with it


def test_the_page_shows_the_figure() -> None:
    figure = by_batch_size(results())
    assert figure is not None
    axes = figure.axes[0]
    titles = [f"{name}, {budget}" for budget in (EPOCHS, STEPS) for name in ("FT %", "Images/s")]
    assert [axes.get_title("left") for axes in figure.axes] == titles
    assert [len(axes.containers) for axes in figure.axes] == [2, 2, 1, 1]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["16", "64", "256", "1024"]
    page = render(results(), ".")
    assert "Accuracy and speed by batch size" in page
    assert "one panel per" not in page.partition("<h2>Training")[0]
    other = Results("table1", results().columns, [row("MAE", 0.5)])
    assert by_batch_size(other) is None
    assert "Accuracy and speed by batch size" not in render(other, ".")


def log(**values: Any) -> list[dict[str, Any]]:
    """A log of steady values; the values at the given places are others."""
    lines: list[dict[str, Any]] = [
        {"step": i, "loss": 1.0, "gradient_norm": 2.0, "images_per_second": 50.0}
        for i in range(1, 41)
    ]
    for name, others in values.items():
        for place, value in others.items():
            lines[place][name] = value
    return lines


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (log(), {"nonfinite": 0, "spikes": 0, "loss": 1.0, "speed": 50.0}),
        (log(gradient_norm={30: 6.1}), {"spikes": 1}),
        (log(gradient_norm={30: 5.9}), {"spikes": 0}),
        (log(loss={25: 1.51, 30: 1.51}, gradient_norm={30: 7.0, 31: 7.0}), {"spikes": 3}),
        (log(loss={WINDOW - 1: 9.0}), {"spikes": 0}),  # nothing to compare it with
        (
            log(loss={5: None, 39: float("nan")}, gradient_norm={39: None}),
            {"nonfinite": 2, "loss": 1.0},
        ),
        (log(loss=dict.fromkeys(range(36, 40), 3.0)), {"loss": 3.0}),
        (log(images_per_second={39: 1e9}), {"speed": 50.0}),
        ([{"knn/top1": x} for x in (0.5, 0.6, 0.57, 0.59, 0.62)], {"knn": 0.62, "dips": 1}),
        ([], {}),
    ],
)
def test_the_course_of_a_training(lines: list, expected: dict[str, float]) -> None:
    found = course_of(lines)
    assert {key: found.get(key) for key in expected} == pytest.approx(expected)
