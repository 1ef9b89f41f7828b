"""The figures of the report as matplotlib `Figure` objects, and their way into a data URI.

Figures are built without pyplot, so nothing global is touched. They keep an opaque white ground:
on a dark page they stand on a light card, readable in both.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from occinv.report.results import (
    ENCODERS,
    Results,
    Row,
    baseline,
    cka_curves,
    cka_encoders,
    has_paper,
    mean_and_std,
    method_rows,
    paper_value,
    percent,
    seed_values,
)

INK, FAINT, GRID = "#222222", "#767676", "#e6e6e6"
# Okabe and Ito's colors, which stay apart for every common color blindness; the yellow is left
# out because it vanishes on white. Line styles and markers repeat the distinction.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P")
LONGEST_CURVE = 400
PANELS_IN_LINE = 6  # of CKA by block


def data_uri(figure: Figure) -> str:
    """The figure as an SVG data URI that needs no font and no file."""
    buffer = io.BytesIO()
    # No date: the same results give the same picture.
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def row_style(results: Results, row: Row) -> dict[str, Any]:
    """Color, marker and dash of a row, the same in every figure; the baseline is black, dashed."""
    if row is baseline(results):
        return {"color": "#000000", "linestyle": "--", "marker": "x", "zorder": 2}
    place = next(i for i, other in enumerate(method_rows(results)) if other is row)
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": ("-", "-.", ":")[place // len(COLORS) % 3],
        "zorder": 3,
    }


def _dress(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=9, color=FAINT)
    axes.set_ylabel(ylabel, fontsize=9, color=FAINT)
    axes.tick_params(labelsize=8, colors=FAINT, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def _say_missing(axes: Axes, text: str) -> None:
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=FAINT
    )
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_xlabel("")
    for spine in axes.spines.values():
        spine.set_visible(False)


def why_no_cka(results: Results, row: Row, encoder: str) -> str:
    """Why a row has no CKA curves of this encoder."""
    if encoder == "pretrained" and row is baseline(results):
        return "no pre-training"
    return {"done": "not measured", "failed": "failed"}.get(row["status"], "not yet run")


def lowest_cka(results: Results) -> float:
    """Lower end of the axis shared by every CKA figure: the least value, rounded down."""
    values = [
        value
        for row in results["rows"]
        for encoder in ENCODERS
        for line in (cka_curves(row, encoder) or {"values": []})["values"]
        for value in line
        if value is not None
    ]
    least = min(values, default=0.0)
    step = 0.1 if least < 0.85 else 0.02
    return max(0.0, math.floor(least / step + 1e-9) * step)


def cka_by_block(results: Results) -> Figure | None:
    """Figure 1 of the paper: CKA over the blocks, one line per drop ratio, one panel per model.

    The upper panels are the pre-trained encoders, the lower ones the fine-tuned; many rows take
    several such lines of panels. A row that is done and has no curves is left out. None if no row
    has any curve yet.
    """
    rows = [
        row
        for row in results["rows"]
        if row["status"] != "done" or any(cka_curves(row, encoder) for encoder in ENCODERS)
    ]
    ratios = sorted(
        {
            ratio
            for row in rows
            for encoder in ENCODERS
            for ratio in (cka_curves(row, encoder) or {"ratios": []})["ratios"]
        }
    )
    if not ratios:
        return None
    ramp = colormaps["viridis_r"](np.linspace(0.12, 1.0, len(ratios)))
    color = dict(zip(ratios, ramp, strict=True))
    encoders = [e for e in ENCODERS if e == "pretrained" or e in cka_encoders(results)]
    width = math.ceil(len(rows) / math.ceil(len(rows) / PANELS_IN_LINE))
    lines = [
        (rows[start : start + width], encoder)
        for start in range(0, len(rows), width)
        for encoder in encoders
    ]
    figure = Figure(figsize=(1.75 * width + 1.0, 2.3 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), width, sharey=True, squeeze=False)
    low = lowest_cka(results)
    drawn: list[Axes] = []
    for panels, (members, encoder) in zip(grid, lines, strict=True):
        for axes in panels[len(members) :]:
            axes.remove()
        drawn += panels[: len(members)].tolist()
        for axes, row in zip(panels, members, strict=False):
            _dress(
                axes,
                textwrap.fill(row["name"], 22) if encoder == encoders[0] else "",
                "block" if encoder == encoders[-1] else "",
                f"{ENCODERS[encoder]}\nCKA" if axes is panels[0] else "",
            )
            axes.set_ylim(low, 1 + 0.02 * (1 - low))
            curves = cka_curves(row, encoder)
            if curves is None:
                _say_missing(axes, why_no_cka(results, row, encoder))
                continue
            for ratio, values in zip(curves["ratios"], curves["values"], strict=True):
                axes.plot(
                    curves["blocks"],
                    _floats(values),
                    color=color[ratio],
                    marker="o",
                    markersize=2.6,
                    linewidth=1.4,
                    label=percent(ratio),
                )
            step = math.ceil(len(curves["blocks"]) / 6)
            axes.set_xticks(curves["blocks"][::step])
    _ratio_bar(figure, drawn, ratios, ramp)
    return figure


def save_cka(models: list[dict[str, Any]], path: Path) -> Path:
    """Draws what `occinv evaluate cka` has measured, a panel for each model, as a PNG at `path`."""
    rows = [
        {
            "name": Path(model["workdir"]).name,
            "status": "done",
            "pretrain": {},
            "cka": {"pretrained": model, "finetuned": None},
        }
        for model in models
    ]
    figure = cka_by_block({"rows": rows})
    if figure is None:
        raise ValueError(f"no model among {models}, expected one or more")
    figure.savefig(path, dpi=150)
    return path


def _ratio_bar(figure: Figure, panels: list[Axes], ratios: list[float], ramp: np.ndarray) -> None:
    edges = np.arange(len(ratios) + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(edges, len(ratios)), ListedColormap(ramp))
    bar = figure.colorbar(scale, ax=panels, ticks=range(len(ratios)), fraction=0.02, pad=0.01)
    bar.ax.set_yticklabels([percent(ratio) for ratio in ratios])
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=0, which="both")
    bar.set_label("patches dropped", fontsize=8, color=FAINT)
    bar.outline.set_visible(False)


def cka_by_ratio(results: Results) -> Figure | None:
    """CKA at the last block over the fraction of dropped patches: one line per row.

    A panel for the pre-trained and one for the fine-tuned encoders; the model trained from
    scratch is in both, as the reference. None if nothing was measured.
    """
    first = baseline(results)
    if not cka_encoders(results):
        return None
    figure = Figure(figsize=(11.3, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    low = lowest_cka(results)
    labeled: dict[str, Any] = {}
    for axes, (encoder, encoder_name) in zip(panels, ENCODERS.items(), strict=True):
        _dress(
            axes,
            f"{encoder_name} encoders",
            "patches dropped (%)",
            "CKA at the last block" if axes is panels[0] else "",
        )
        axes.set_ylim(low, 1 + 0.02 * (1 - low))
        for row in results["rows"]:
            is_reference = row is first
            curves = cka_curves(row, "finetuned" if is_reference else encoder)
            if curves is None:
                continue
            name = f"{row['name']}, supervised" if is_reference else row["name"]
            (labeled[name],) = axes.plot(
                [100 * ratio for ratio in curves["ratios"]],
                _floats(values[-1] for values in curves["values"]),
                linewidth=1.6,
                markersize=4.5,
                label=name,
                **row_style(results, row),
            )
    _legend(figure, labeled)
    return figure


def pretraining_losses(results: Results) -> Figure | None:
    """The pre-training loss over the steps, one panel per row and each on its own scale.

    The objectives minimize different quantities, so heights do not compare across panels.
    """
    rows = [row for row in results["rows"] if (row.get("pretrain") or {}).get("loss")]
    if not rows:
        return None
    columns = min(len(rows), 5)
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(max(2.2 * columns, 3.2), 2.2 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, row in zip(panels, rows, strict=False):
        title = textwrap.fill(row["name"], 26)
        _dress(axes, title, "step", "loss" if axes in panels[::columns] else "")
        color = row_style(results, row)["color"]
        _curve(axes, row["pretrain"]["loss"], color=color)
    for axes in panels[len(rows) :]:
        axes.remove()
    return figure


def training_curves(results: Results, stage: str) -> Figure | None:
    """Loss (cross-entropy) and test accuracy (percent) of a stage on labels over the steps."""
    trained = [(row, row.get(stage) or {}) for row in results["rows"]]
    trained = [(row, of) for row, of in trained if of.get("loss") or of.get("accuracy")]
    if not trained:
        return None
    figure = Figure(figsize=(11.3, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _dress(loss, "training loss", "step", "cross-entropy")
    _dress(accuracy, "test accuracy", "step", "top-1 (%)")
    labeled: dict[str, Any] = {}
    for row, of in trained:
        style = row_style(results, row)
        plain = {key: style[key] for key in ("color", "linestyle", "zorder")}
        if of.get("loss"):
            labeled[row["name"]] = _curve(loss, of["loss"], **plain)
        if of.get("accuracy"):
            steps, values = zip(*of["accuracy"], strict=True)
            (labeled[row["name"]],) = accuracy.plot(
                steps, [100 * v for v in _floats(values)], linewidth=1.5, markersize=4, **style
            )
    _legend(figure, labeled)
    return figure


def accuracies(results: Results) -> Figure | None:
    """Every accuracy (percent) as a dot, a line per row; the paper's beside them, on its own scale.

    Ours has the standard deviation over seeds as a bar, and the baseline's goes down as a line.
    None if there is no accuracy of ours.
    """
    rows = results["rows"]
    columns = [
        c for c in results["columns"] if c["unit"] == "%" and any(seed_values(r, c) for r in rows)
    ]
    if not columns:
        return None
    panels = [
        (c, is_ours)
        for c in columns
        for is_ours in (True, False)
        if is_ours or has_paper(results, c)
    ]
    figure = Figure(
        figsize=(3.0 + 8.3 * min(1.0, len(panels) / 4), 0.8 + 0.3 * len(rows)), layout="constrained"
    )
    grid = figure.subplots(
        1, len(panels), sharey=True, squeeze=False, width_ratios=[3 if o else 2 for _, o in panels]
    )
    first = baseline(results)
    for axes, (column, is_ours) in zip(grid.flat, panels, strict=True):
        _dress(axes, column["heading"] if is_ours else "", "ours" if is_ours else "paper")
        axes.margins(x=0.15)
        for place, row in enumerate(rows):
            ours, theirs = seed_values(row, column), paper_value(row, column)
            color = "#000000" if row is first else COLORS[0]
            if is_ours and ours:
                mean, std = mean_and_std(ours)
                axes.errorbar(mean, place, xerr=std, fmt="o", color=color, markersize=6, capsize=3)
                if row is first:
                    axes.axvline(mean, color=FAINT, linewidth=1, linestyle="--", zorder=1)
            elif not is_ours and theirs is not None:
                axes.plot(theirs, place, "o", color=color, markersize=6, fillstyle="none")
    grid[0, 0].set_yticks(range(len(rows)), [textwrap.fill(row["name"], 40) for row in rows])
    grid[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _legend(figure: Figure, labeled: dict[str, Any]) -> None:
    figure.legend(
        list(labeled.values()),
        [textwrap.fill(name, 28) for name in labeled],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _curve(axes: Axes, points: Sequence[Sequence[Any]], **style: Any) -> Any:
    """Plot [step, value] pairs; a long noisy curve is pale with its moving mean on top."""
    stride = math.ceil(len(points) / LONGEST_CURVE)
    steps, values = zip(*points[::stride], strict=True)
    numbers = np.asarray(_floats(values))
    width = len(numbers) // 20
    if width < 3:
        marker = "o" if len(numbers) == 1 else None
        (line,) = axes.plot(steps, numbers, linewidth=1.5, marker=marker, **style)
        return line
    axes.plot(steps, numbers, linewidth=0.8, alpha=0.3, **style)
    kernel = np.ones(width)
    # Divided by how many points lie under the kernel, so that the ends are not pulled to zero.
    mean = np.convolve(numbers, kernel, "same") / np.convolve(np.ones_like(numbers), kernel, "same")
    (line,) = axes.plot(steps, mean, linewidth=1.6, **style)
    return line


def _floats(values: Any) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
