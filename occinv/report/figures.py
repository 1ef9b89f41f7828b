"""The figures of the report as matplotlib `Figure` objects.

They are built without pyplot, so no global state changes. Their colors are those of a light page;
`svg` makes them follow the page.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from occinv.evaluators import quoted_place
from occinv.evaluators.base import Record
from occinv.report.loss_curve import moving_mean, read_curve
from occinv.report.measured import curves_of
from occinv.report.results import (
    ENCODERS,
    CkaCurves,
    Points,
    Results,
    Row,
    StageRecord,
    mean_and_std,
    percent,
)
from occinv.report.svg import BLACK, COLORS, FAINT, GRID, INK, RAMP, RAMP_START

MARKERS = ("o", "s", "^", "D", "v", "P")
MONITORS = {
    "noise_scale": "noise scale (images)",
    "feature_rank": "rank of features",
    "feature_variance": "variance of features",
    "attention_entropy": "entropy of attention",
    "agreement": "agreement (dotted: by chance)",
}
LONGEST_CURVE = 400  # points
PANELS_PER_LINE = 6  # of CKA by block


def row_style(results: Results, row: Row) -> dict[str, Any]:
    """The color, marker and line style of a row in every figure; the baseline is black, dashed."""
    if row is results.baseline:
        return {"color": BLACK, "linestyle": "--", "marker": "x", "zorder": 2}
    place = next(i for i, other in enumerate(results.methods) if other is row)
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": ("-", "-.", ":")[place // len(COLORS) % 3],
        "zorder": 3,
    }


def missing_cka_reason(results: Results, row: Row, encoder: str) -> str:
    """Why a row has no CKA curves of this encoder."""
    if encoder == "pretrained" and row is results.baseline:
        return "no pretraining"
    return {"done": "not measured", "failed": "failed"}.get(row.status, "not yet run")


def lowest_cka(results: Results) -> float:
    """The lower end of the axis of every CKA figure: the smallest value, rounded down."""
    lines = [line for row in results.rows for c in row.cka.values() if c for line in c.values]
    least = min((value for line in lines for value in line), default=0.0)
    step = 0.1 if least < 0.85 else 0.02
    return max(0.0, math.floor(least / step + 1e-9) * step)


def cka_by_block(results: Results, *, name_encoders: bool = True) -> Figure | None:
    """Figure 1 of the paper: CKA by block, one line per drop ratio, one panel per encoder.

    The upper panels show the pretrained encoders, the lower ones the fine-tuned. The filled area is
    below the CKA of untrained encoders at the quoted drop ratio. Many rows are
    split into several such pairs of lines. A complete row without curves has no panel.

    Args:
      results: The rows with their curves.
      name_encoders: Whether the axes say pretrained or fine-tuned.

    Returns:
      The figure; None if there are no curves.
    """
    rows = [
        row
        for row in results.rows
        if not row.is_floor and (row.status != "done" or any(row.cka.values()))
    ]
    ratios = sorted(
        {r for row in rows for found in row.cka.values() if found for r in found.ratios}
    )
    if not ratios:
        return None
    ramp = colormaps[RAMP](np.linspace(RAMP_START, 1.0, len(ratios)))
    color = dict(zip(ratios, ramp, strict=True))
    encoders = [e for e in ENCODERS if e == "pretrained" or e in results.cka_encoders]
    width = math.ceil(len(rows) / math.ceil(len(rows) / PANELS_PER_LINE))
    lines = [
        (rows[start : start + width], encoder)
        for start in range(0, len(rows), width)
        for encoder in encoders
    ]
    figure = Figure(figsize=(1.75 * width + 1.0, 2.3 * len(lines) + 0.4), layout="constrained")
    grid = figure.subplots(len(lines), width, sharey=True, squeeze=False)
    low = lowest_cka(results)
    drawn: list[Axes] = []
    for panels, (members, encoder) in zip(grid, lines, strict=True):
        for axes in panels[len(members) :]:
            axes.remove()
        drawn += panels[: len(members)].tolist()
        for axes, row in zip(panels, members, strict=False):
            style_axes(
                axes,
                textwrap.fill(row.name, 22) if encoder == encoders[0] else "",
                "block" if encoder == encoders[-1] else "",
                f"{ENCODERS[encoder]}\n" * name_encoders + "CKA" if axes is panels[0] else "",
            )
            axes.set_ylim(low, 1 + 0.02 * (1 - low))
            if curves := row.cka.get(encoder):
                _plot_cka(axes, curves, color)
            else:
                _write_instead(axes, missing_cka_reason(results, row, encoder))
    _color_bar(figure, drawn, ratios, ramp)
    return figure


def save_cka(records: Sequence[Record], path: Path) -> Path:
    """Draw the CKA of records of the evaluator invariance as a PNG, one panel for each."""
    rows = [
        Row(
            name=Path(record.workdir).name
            + (", mask token" if record.protocol.get("removed") == "mask_token" else ""),
            key=str(number),
            pretrain=StageRecord(),
            cka={"pretrained": curves_of([record])},
        )
        for number, record in enumerate(records)
    ]
    figure = cka_by_block(Results(title="", columns=[], rows=rows), name_encoders=False)
    if figure is None:
        raise ValueError(f"expected one record or more, got {records}")
    with path.open("wb") as file:
        figure.savefig(file, dpi=150, format="png")
    return path


def cka_by_ratio(results: Results) -> Figure | None:
    """CKA at the last block by the fraction of dropped patches, one line per row.

    One panel shows the pretrained encoders, the other the fine-tuned; an encoder without curves has
    no panel. The model supervised from scratch is in both as the reference.

    Returns:
      The figure; None if there are no curves.
    """
    encoders = results.cka_encoders
    if not encoders:
        return None
    figure = Figure(figsize=(11.3 if len(encoders) > 1 else 7.3, 3.8), layout="constrained")
    panels = figure.subplots(1, len(encoders), sharey=True, squeeze=False)[0]
    low = lowest_cka(results)
    labeled: dict[str, Artist] = {}
    for axes, encoder in zip(panels, encoders, strict=True):
        ylabel = "CKA at the last block" if axes is panels[0] else ""
        style_axes(axes, f"{ENCODERS[encoder]} encoders", "patches removed (%)", ylabel)
        axes.set_ylim(low, 1 + 0.02 * (1 - low))
        labeled |= _plot_floors(axes, results, encoder)
        for row in results.rows:
            is_reference = row is results.baseline
            curves = row.cka.get("finetuned" if is_reference else encoder)
            if curves is None or row.is_floor:
                continue
            name = f"{row.name}, supervised" if is_reference else row.name
            (labeled[name],) = axes.plot(
                [100 * ratio for ratio in curves.ratios],
                _floats(values[-1] for values in curves.values),
                linewidth=1.6,
                markersize=4.5,
                label=name,
                **row_style(results, row),
            )
    add_legend(figure, labeled)
    return figure


def pretraining_losses(results: Results) -> Figure | None:
    """The training loss of the pretraining by step, one panel per row with its own scale.

    Objectives minimize different quantities, so values in different panels cannot be compared.
    """
    rows = [(row, row.pretrain.loss) for row in results.rows if row.pretrain and row.pretrain.loss]
    if not rows:
        return None
    columns = min(len(rows), 5)
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(max(2.2 * columns, 3.2), 2.2 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, (row, loss) in zip(panels, rows, strict=False):
        title = textwrap.fill(row.name, 26)
        style_axes(axes, title, "step", "training loss" if axes in panels[::columns] else "")
        _plot_curve(axes, loss, color=row_style(results, row)["color"])
        _write_if_empty(axes, "training loss")
    for axes in panels[len(rows) :]:
        axes.remove()
    return figure


def monitors(results: Results) -> Figure | None:
    """Each monitor of the pretraining by step, in a panel with one line per row."""
    logged = [(row, row.pretrain.monitors) for row in results.rows if row.pretrain]
    names = [name for name in MONITORS if any(name in found for _, found in logged)]
    if not names:
        return None
    figure = Figure(figsize=(2.5 * len(names) + 2.3, 3.0), layout="constrained")
    labeled: dict[str, Line2D] = {}
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        style_axes(axes, MONITORS[name], "step")
        for row, found in logged:
            if name in found:
                style = row_style(results, row)
                line = {key: style[key] for key in ("color", "linestyle", "zorder")}
                labeled[row.name] = _plot_curve(axes, found[name], **line)
                if name == "agreement" and "agreement_by_chance" in found:
                    _plot_curve(axes, found["agreement_by_chance"], **line | {"linestyle": ":"})
        _write_if_empty(axes, MONITORS[name])
    add_legend(figure, labeled)
    return figure


def training_curves(results: Results, stage: str) -> Figure | None:
    """Training loss and validation accuracy (percent) by step, in a training stage with labels."""
    trained = [(row, row.stages[stage]) for row in results.rows if stage in row.stages]
    trained = [(row, record) for row, record in trained if record.loss or record.accuracy]
    if not trained:
        return None
    figure = Figure(figsize=(11.3, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    style_axes(loss, "training loss", "step", "cross-entropy")
    style_axes(accuracy, "validation accuracy", "step", "top-1 (%)")
    labeled: dict[str, Line2D] = {}
    for row, record in trained:
        style = row_style(results, row)
        without_marker = {key: style[key] for key in ("color", "linestyle", "zorder")}
        if record.loss:
            labeled[row.name] = _plot_curve(loss, record.loss, **without_marker)
        if record.accuracy:
            steps, values = zip(*record.accuracy, strict=True)
            (labeled[row.name],) = accuracy.plot(
                steps, 100 * _floats(values), linewidth=1.5, markersize=4, **style
            )
    _write_if_empty(loss, "training loss")
    _write_if_empty(accuracy, "validation accuracy")
    add_legend(figure, labeled)
    return figure


def accuracies(results: Results) -> Figure | None:
    """Every accuracy (percent) as a dot, one line per row, with the paper's on another scale.

    Bars are standard deviations over seeds. A dashed line continues the baseline's accuracy.

    Returns:
      The figure; None if no accuracy of ours exists.
    """
    shown = [c for c in results.columns if c.unit == "%"]
    columns = [c for c in shown if any(row.seed_values(c) for row in results.rows)]
    if not columns:
        return None
    rows = [r for r in results.rows if not r.is_floor or any(r.seed_values(c) for c in columns)]
    panels = [(c, ours) for c in columns for ours in (True, False) if ours or results.has_paper(c)]
    figure = Figure(
        figsize=(3.0 + 8.3 * min(1.0, len(panels) / 4), 0.8 + 0.3 * len(rows)), layout="constrained"
    )
    grid = figure.subplots(
        1, len(panels), sharey=True, squeeze=False, width_ratios=[3 if o else 2 for _, o in panels]
    )
    for axes, (column, is_ours) in zip(grid.flat, panels, strict=True):
        style_axes(axes, column.heading if is_ours else "", "ours" if is_ours else "paper")
        axes.margins(x=0.15)
        for place, row in enumerate(rows):
            ours, paper = row.seed_values(column), row.paper.get(column.key)
            color = BLACK if row is results.baseline else COLORS[0]
            if is_ours and ours:
                mean, std = mean_and_std(ours)
                axes.errorbar(mean, place, xerr=std, fmt="o", color=color, markersize=6, capsize=3)
                if row is results.baseline:
                    axes.axvline(mean, color=FAINT, linewidth=1, linestyle="--", zorder=1)
            elif not is_ours and paper is not None:
                axes.plot(paper, place, "o", color=color, markersize=6, fillstyle="none")
    grid[0, 0].set_yticks(range(len(rows)), [textwrap.fill(row.name, 40) for row in rows])
    grid[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def style_axes(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Give axes the title, labels and colors of every figure."""
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(xlabel, fontsize=9, color=FAINT)
    axes.set_ylabel(ylabel, fontsize=9, color=FAINT)
    axes.tick_params(labelsize=8, colors=FAINT, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)


def _write_instead(axes: Axes, text: str) -> None:
    """Write `text` in an empty panel."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=FAINT
    )
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_xlabel("")
    axes.spines[:].set_visible(False)


def _write_if_empty(axes: Axes, quantity: str) -> None:
    """Replace the axes of a panel without a finite value by a sentence."""
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        _write_instead(axes, f"There is no {quantity} to show.")
        axes.set_yticks([])
        axes.set_ylabel("")


def _plot_cka(axes: Axes, curves: CkaCurves, color: Mapping[float, np.ndarray]) -> None:
    for ratio, values in zip(curves.ratios, curves.values, strict=True):
        axes.plot(
            curves.blocks,
            _floats(values),
            color=color[ratio],
            marker="o",
            markersize=2.6,
            linewidth=1.4,
            label=percent(ratio),
        )
    if curves.floor:
        place = quoted_place(curves.ratios)
        axes.fill_between(curves.blocks, -1, curves.floor[place], color=GRID, zorder=0)
    axes.set_xticks(curves.blocks[:: math.ceil(len(curves.blocks) / 6)])


def _plot_floors(axes: Axes, results: Results, encoder: str) -> dict[str, Artist]:
    """Fill the CKA below that of untrained encoders, for each token that rows are judged by."""
    floors = {c.token: c for row in results.rows if (c := row.cka.get(encoder)) and c.floor}
    drawn: dict[str, Artist] = {}
    for curves in floors.values():
        shares = [100 * ratio for ratio in curves.ratios]
        heights = [values[-1] for values in curves.floor]
        drawn["untrained"] = axes.fill_between(shares, -1, heights, color=GRID, zorder=0)
    return drawn


def _color_bar(figure: Figure, panels: list[Axes], ratios: list[float], ramp: np.ndarray) -> None:
    edges = np.arange(len(ratios) + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(edges, len(ratios)), ListedColormap(ramp))
    width, height = figure.get_size_inches()
    shape = {"fraction": 0.13 / (width - 1), "aspect": 7 * height}  # nearly as high as the panels
    bar = figure.colorbar(scale, ax=panels, ticks=range(len(ratios)), pad=0.01, **shape)
    bar.ax.set_yticklabels([percent(ratio) for ratio in ratios])
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=0, which="both")
    bar.set_label("patches removed", fontsize=8, color=FAINT)
    bar.outline.set_visible(False)


def add_legend(figure: Figure, labeled: Mapping[str, Any]) -> None:
    """Add a legend to the right of the figure, from artists by name."""
    figure.legend(
        list(labeled.values()),
        [textwrap.fill(name, 28) for name in labeled],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _plot_curve(axes: Axes, points: Points, **style: Any) -> Line2D:
    """Plot values by step; a long curve is pale, with its moving mean on top."""
    curve = read_curve(points)
    number = len(curve.steps)
    shown = np.unique(np.linspace(0, number - 1, min(number, LONGEST_CURVE)).round().astype(int))
    steps, values = curve.steps[shown], curve.values[shown]
    if (width := number // 20) < 3:
        is_finite = np.isfinite(values)
        # A line shows only values that have a neighbor.
        marker = None if (is_finite[1:] & is_finite[:-1]).any() else "o"
        return axes.plot(steps, values, linewidth=1.5, marker=marker, **style)[0]
    axes.plot(steps, values, linewidth=0.8, alpha=0.3, **style)
    return axes.plot(steps, moving_mean(curve, width)[shown], linewidth=1.6, **style)[0]


def _floats(values: Iterable[float | None]) -> np.ndarray:
    """The values as float64, with NaN for None."""
    return np.array(list(values), float)
