"""A table of batch sizes: its matrix, its figure, and where each objective stops gaining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from occinv.report.differences import difference, sentence
from occinv.report.figures import MARKERS, add_legend, style_axes
from occinv.report.results import MISSING, Results, Row, mean_and_std
from occinv.report.statistics import ALPHA
from occinv.report.svg import COLORS
from occinv.report.table import cka_text, three_decimals, value_text

PANELS = ("finetune", "knn", "speed")  # the columns that the figure shows
DECIDES = "finetune"  # the column that decides where an objective stops gaining
BATCH_LINES = {  # the lines of a cell of the matrix, with the keys of their columns
    "FT %": "finetune",
    "k-NN %": "knn",
    "CKA (floor)": "cka",
    "Loss": "loss",
    "Non-finite, spikes, dips": "unstable",
    "Images/s": "speed",
}


class Curve(NamedTuple):
    """The rows of one objective and one budget, by increasing batch size."""

    objective: str
    budget: str
    rows: list[Row]


def curves(results: Results) -> list[Curve]:
    """The curves of a table of batch sizes; empty for another table.

    A single row that is in two budgets is a curve only of the first.
    """
    found: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        for budget in row.budgets:
            found.setdefault((budget, row.curve), []).append(row)
    return [
        Curve(objective, budget, sorted(rows, key=lambda row: row.batch_size or 0))
        for (budget, objective), rows in found.items()
        if len(rows) > 1 or budget == rows[0].budgets[0]
    ]


def references(results: Results) -> list[Row]:
    """The rows that are not pretrained and so have no batch size: random initialization."""
    return [row for row in results.rows if row.batch_size is None and not row.is_floor]


def batch_sizes(lines: Sequence[Curve]) -> list[int]:
    """The batch sizes of all curves, in increasing order."""
    return sorted({row.batch_size for line in lines for row in line.rows if row.batch_size})


def steps_of(curve: Curve) -> Iterator[tuple[Row, Row]]:
    """Each row of a curve with the row of the next smaller batch size."""
    return zip(curve.rows[1:], curve.rows[:-1], strict=True)


def verdict_of(results: Results, curve: Curve, p_values: dict) -> tuple[str, list[str]] | None:
    """Say up to which batch size an objective gains, and give the comparisons.

    Args:
      results: The results.
      curve: The rows of the objective.
      p_values: Adjusted p-values by the keys of row, other row and column, and relation.

    Returns:
      A sentence, and one sentence for each step from a batch size to the next larger one; None if
      nothing can be compared.
    """
    column = results.column(DECIDES)
    assert column is not None
    details: list[str] = []
    gains: list[int] = []
    falls: list[int] = []
    for row, smaller in steps_of(curve):
        found = difference(results, row, smaller, column)
        if found is None:
            continue
        p_value = p_values.get((row.key, smaller.key, DECIDES, "above"))
        details.append(sentence(row, smaller, column, found, p_value))
        if p_value is not None and p_value < ALPHA and found.value:
            (gains if found.value > 0 else falls).append(row.batch_size or 0)
    if not details:
        return None
    first = curve.rows[0].batch_size
    text = (
        f"gains significantly up to batch size {max(gains)}"
        if gains
        else f"does not gain significantly above batch size {first}"
    )
    if falls:
        text += f", and falls significantly at {', '.join(map(str, falls))}"
    return f"{curve.objective}, {curve.budget}: {column.heading} {text}", details


def by_batch_size(results: Results) -> Figure | None:
    """Draw each quantity of `PANELS` by batch size: a line for each objective.

    Each budget has its row of panels. Bars are standard deviations over seeds, and random
    initialization is a dotted line. None if the results are not a table of batch sizes, or have no
    number yet.
    """
    lines = curves(results)
    columns = [
        column
        for key in PANELS
        if (column := results.column(key)) and any(r.seed_values(column) for r in results.rows)
    ]
    if not lines or not columns:
        return None
    objectives = list(dict.fromkeys(line.objective for line in lines))
    budgets = list(dict.fromkeys(line.budget for line in lines))
    sizes = batch_sizes(lines)
    shape = len(budgets), len(columns)
    figure = Figure(
        figsize=(3.0 * len(columns) + 2.3, 0.4 + 3.0 * len(budgets)), layout="constrained"
    )
    panels_of_budgets = figure.subplots(*shape, squeeze=False, sharey="col")
    labeled = {}
    for panels, budget in zip(panels_of_budgets, budgets, strict=True):
        for axes, column in zip(panels, columns, strict=True):
            style_axes(axes, f"{column.heading}, {budget}", "batch size")
            axes.set_xscale("log", base=2)
            for line in lines:
                known = [row for row in line.rows if row.seed_values(column)]
                if line.budget != budget or not known:
                    continue
                means, deviations = zip(
                    *(mean_and_std(row.seed_values(column)) for row in known), strict=True
                )
                place = objectives.index(line.objective)
                labeled[line.objective] = axes.errorbar(
                    [row.batch_size or 0 for row in known],
                    means,
                    yerr=[deviation or 0 for deviation in deviations],
                    color=COLORS[place % len(COLORS)],
                    marker=MARKERS[(place + place // len(COLORS)) % len(MARKERS)],
                    fillstyle="full" if place < len(COLORS) else "none",
                    linestyle="-" if place < len(COLORS) else "--",
                    linewidth=1.4,
                    markersize=4,
                    capsize=2,
                )
            for row in references(results):
                if values := row.seed_values(column):
                    mean = mean_and_std(values)[0]
                    labeled[row.name] = axes.axhline(mean, color="gray", linestyle=":")
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
    add_legend(figure, labeled)
    return figure


def batch_cells(results: Results) -> list[list[str]]:
    """The matrix as text: a heading, then one line for each curve, with `BATCH_LINES` in a cell.

    Rows that are not pretrained have their numbers in the first cell.
    """
    lines = curves(results)
    sizes = batch_sizes(lines)
    found = [["Objective", "", *map(str, sizes)]]
    names = "\n".join(BATCH_LINES)
    budget = None
    for line in lines:
        cells = {row.batch_size: "\n".join(cell(results, row)) for row in line.rows}
        found.append([line.objective, names, *(cells.get(size, "") for size in sizes)])
        if line.budget != budget:
            found[-1][0] += f"\n({line.budget})"
            budget = line.budget
    for row in references(results):
        name = f"{row.name}\n(not pretrained)"
        found.append([name, names, "\n".join(cell(results, row)), *[""] * (len(sizes) - 1)])
    return found


def cell(results: Results, row: Row) -> list[str]:
    """The numbers of a row in the order of `BATCH_LINES`."""
    texts = {column.key: value_text(row, column) for column in results.columns}
    cka = row.last_block_cka("pretrained")
    floor = "" if cka is None or cka.floor is None else f" ({three_decimals(cka.floor)})"
    texts["cka"] = cka_text(row, "pretrained") + floor
    counts = (texts.get(key, MISSING) for key in ("nonfinite", "spikes", "dips"))
    texts["unstable"] = ", ".join(c if "±" in c else c.removesuffix(".0") for c in counts)
    if row.status == "failed":
        texts["finetune"] = "failed"
    return [texts.get(key, MISSING) for key in BATCH_LINES.values()]
