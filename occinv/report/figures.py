"""The figures of the report as matplotlib `Figure` objects.

They are built without pyplot, so no global state changes. Their background is white; on a dark page
they are shown on a white card.
"""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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

INK, FAINT, GRID = "#222222", "#767676", "#e6e6e6"
# The palette of Okabe and Ito, which is safe for color blindness, without the yellow that is too
# pale on white. Line styles and markers repeat the distinction.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P")
LONGEST_CURVE = 400  # points
PANELS_PER_LINE = 6  # of CKA by block


def data_uri(figure: Figure) -> str:
    """The figure as an SVG data URI that needs no font and no file."""
    buffer = io.BytesIO()
    # No date: equal results give equal pictures.
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def row_style(results: Results, row: Row) -> dict[str, Any]:
    """The color, marker and line style of a row in every figure; the baseline is black, dashed."""
    if row is results.baseline:
        return {"color": "#000000", "linestyle": "--", "marker": "x", "zorder": 2}
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
    least = min((value for line in lines for value in line if value is not None), default=0.0)
    step = 0.1 if least < 0.85 else 0.02
    return max(0.0, math.floor(least / step + 1e-9) * step)


def cka_by_block(results: Results) -> Figure | None:
    """Figure 1 of the paper: CKA by block, one line per drop ratio, one panel per encoder.

    The upper panels show the pretrained encoders, the lower ones the fine-tuned. Many rows are
    split into several such pairs of lines. A complete row without curves has no panel.

    Returns:
      The figure; None if there are no curves.
    """
    rows = [row for row in results.rows if row.status != "done" or any(row.cka.values())]
    ratios = sorted(
        {r for row in rows for found in row.cka.values() if found for r in found.ratios}
    )
    if not ratios:
        return None
    ramp = colormaps["viridis_r"](np.linspace(0.12, 1.0, len(ratios)))
    color = dict(zip(ratios, ramp, strict=True))
    encoders = [e for e in ENCODERS if e == "pretrained" or e in results.cka_encoders]
    width = math.ceil(len(rows) / math.ceil(len(rows) / PANELS_PER_LINE))
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
            _style_axes(
                axes,
                textwrap.fill(row.name, 22) if encoder == encoders[0] else "",
                "block" if encoder == encoders[-1] else "",
                f"{ENCODERS[encoder]}\nCKA" if axes is panels[0] else "",
            )
            axes.set_ylim(low, 1 + 0.02 * (1 - low))
            if curves := row.cka.get(encoder):
                _plot_cka(axes, curves, color)
            else:
                _write_instead(axes, missing_cka_reason(results, row, encoder))
    _color_bar(figure, drawn, ratios, ramp)
    return figure


def save_cka(models: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the `models` of `evaluate/cka.json` as a PNG at `path`, one panel for each."""
    rows = [
        Row(
            name=Path(model["workdir"]).name,
            key=str(number),
            pretrain=StageRecord(),
            cka={"pretrained": CkaCurves(model["ratios"], model["blocks"], model["values"])},
        )
        for number, model in enumerate(models)
    ]
    figure = cka_by_block(Results(title="", columns=[], rows=rows))
    if figure is None:
        raise ValueError(f"expected one model or more, got {models}")
    figure.savefig(path, dpi=150)
    return path


def cka_by_ratio(results: Results) -> Figure | None:
    """CKA at the last block by the fraction of dropped patches, one line per row.

    One panel shows the pretrained encoders, the other the fine-tuned. The model supervised from
    scratch is in both as the reference.

    Returns:
      The figure; None if there are no curves.
    """
    if not results.cka_encoders:
        return None
    figure = Figure(figsize=(11.3, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    low = lowest_cka(results)
    labeled: dict[str, Line2D] = {}
    for axes, (encoder, title) in zip(panels, ENCODERS.items(), strict=True):
        ylabel = "CKA at the last block" if axes is panels[0] else ""
        _style_axes(axes, f"{title} encoders", "patches dropped (%)", ylabel)
        axes.set_ylim(low, 1 + 0.02 * (1 - low))
        for row in results.rows:
            is_reference = row is results.baseline
            curves = row.cka.get("finetuned" if is_reference else encoder)
            if curves is None:
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
    _add_legend(figure, labeled)
    return figure


def pretraining_losses(results: Results) -> Figure | None:
    """The pretraining loss by step, one panel per row with its own scale.

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
        _style_axes(axes, title, "step", "loss" if axes in panels[::columns] else "")
        _plot_curve(axes, loss, color=row_style(results, row)["color"])
    for axes in panels[len(rows) :]:
        axes.remove()
    return figure


def training_curves(results: Results, stage: str) -> Figure | None:
    """Cross-entropy and test accuracy (percent) by step, in a training stage with labels."""
    trained = [(row, row.stages[stage]) for row in results.rows if stage in row.stages]
    trained = [(row, record) for row, record in trained if record.loss or record.accuracy]
    if not trained:
        return None
    figure = Figure(figsize=(11.3, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _style_axes(loss, "training loss", "step", "cross-entropy")
    _style_axes(accuracy, "test accuracy", "step", "top-1 (%)")
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
    _add_legend(figure, labeled)
    return figure


def accuracies(results: Results) -> Figure | None:
    """Every accuracy (percent) as a dot, one line per row, with the paper's on another scale.

    Bars are standard deviations over seeds. A dashed line continues the baseline's accuracy.

    Returns:
      The figure; None if no accuracy of ours exists.
    """
    rows = results.rows
    columns = [c for c in results.columns if c.unit == "%" and any(r.seed_values(c) for r in rows)]
    if not columns:
        return None
    panels = [(c, ours) for c in columns for ours in (True, False) if ours or results.has_paper(c)]
    figure = Figure(
        figsize=(3.0 + 8.3 * min(1.0, len(panels) / 4), 0.8 + 0.3 * len(rows)), layout="constrained"
    )
    grid = figure.subplots(
        1, len(panels), sharey=True, squeeze=False, width_ratios=[3 if o else 2 for _, o in panels]
    )
    for axes, (column, is_ours) in zip(grid.flat, panels, strict=True):
        _style_axes(axes, column.heading if is_ours else "", "ours" if is_ours else "paper")
        axes.margins(x=0.15)
        for place, row in enumerate(rows):
            ours, paper = row.seed_values(column), row.paper.get(column.key)
            color = "#000000" if row is results.baseline else COLORS[0]
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


def _style_axes(axes: Axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
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
    axes.set_xticks(curves.blocks[:: math.ceil(len(curves.blocks) / 6)])


def _color_bar(figure: Figure, panels: list[Axes], ratios: list[float], ramp: np.ndarray) -> None:
    edges = np.arange(len(ratios) + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(edges, len(ratios)), ListedColormap(ramp))
    bar = figure.colorbar(scale, ax=panels, ticks=range(len(ratios)), fraction=0.02, pad=0.01)
    bar.ax.set_yticklabels([percent(ratio) for ratio in ratios])
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=0, which="both")
    bar.set_label("patches dropped", fontsize=8, color=FAINT)
    bar.outline.set_visible(False)


def _add_legend(figure: Figure, labeled: Mapping[str, Line2D]) -> None:
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
    steps, values = zip(*points[:: math.ceil(len(points) / LONGEST_CURVE)], strict=True)
    numbers = _floats(values)
    width = len(numbers) // 20
    if width < 3:
        marker = "o" if len(numbers) == 1 else None
        return axes.plot(steps, numbers, linewidth=1.5, marker=marker, **style)[0]
    axes.plot(steps, numbers, linewidth=0.8, alpha=0.3, **style)
    kernel = np.ones(width)
    # Divide by the number of points below the kernel, so that the ends are not pulled to zero.
    mean = np.convolve(numbers, kernel, "same") / np.convolve(np.ones_like(numbers), kernel, "same")
    return axes.plot(steps, mean, linewidth=1.6, **style)[0]


def _floats(values: Iterable[float | None]) -> np.ndarray:
    """The values as float64, with NaN for None."""
    return np.array(list(values), float)
