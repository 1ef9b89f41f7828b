"""The figures of the report as matplotlib `Figure` objects, and their way into a data URI.

Figures are built without pyplot, so nothing global is touched. They keep an opaque white ground:
on a dark page they stand on a light card, readable in both.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from occinv.report.results import Results, Row, baseline, cka_curves, method_rows, percent

INK, FAINT, GRID = "#222222", "#767676", "#e6e6e6"
# Okabe and Ito's colours, which stay apart for every common colour blindness; the yellow is left
# out because it vanishes on white. Line styles and markers repeat the distinction.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P")
STAGES = {"pretrained": "pre-trained", "finetuned": "fine-tuned"}
LONGEST_CURVE = 400


def data_uri(figure: Figure) -> str:
    """The figure as an SVG data URI that needs no font and no file."""
    buffer = io.BytesIO()
    # No date: the same results give the same picture.
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def row_style(results: Results, row: Row) -> dict[str, Any]:
    """Colour, marker and dash of a row, the same in every figure; the baseline is black, dashed."""
    if row is baseline(results):
        return {"color": "#000000", "linestyle": "--", "marker": "x", "zorder": 2}
    place = next(i for i, other in enumerate(method_rows(results)) if other is row)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": ("-", "-.", ":")[place // len(COLOURS) % 3],
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


def missing_stage(results: Results, row: Row, stage: str) -> str:
    """Why a row has no CKA curves of this stage."""
    if stage == "pretrained" and row is baseline(results):
        return "no pre-training"
    return {"done": "not measured", "failed": "failed"}.get(row["status"], "not yet run")


def lowest_cka(results: Results) -> float:
    """Lower end of the axis shared by every CKA figure: the least value, rounded down."""
    values = [
        value
        for row in results["rows"]
        for stage in STAGES
        for line in (cka_curves(row, stage) or {"values": []})["values"]
        for value in line
        if value is not None
    ]
    least = min(values, default=0.0)
    step = 0.1 if least < 0.85 else 0.02
    return max(0.0, math.floor(least / step + 1e-9) * step)


def cka_by_block(results: Results) -> Figure | None:
    """Figure 1 of the paper: CKA over the blocks, one line per drop ratio, one panel per model.

    The upper panels are the pre-trained encoders, the lower ones the fine-tuned. None if no row
    has any curve yet.
    """
    rows = results["rows"]
    ratios = sorted(
        {
            ratio
            for row in rows
            for stage in STAGES
            for ratio in (cka_curves(row, stage) or {"ratios": []})["ratios"]
        }
    )
    if not ratios:
        return None
    ramp = colormaps["viridis_r"](np.linspace(0.12, 1.0, len(ratios)))
    colour = dict(zip(ratios, ramp, strict=True))
    stages = [s for s in STAGES if s == "pretrained" or any(cka_curves(row, s) for row in rows)]
    size = (1.75 * len(rows) + 1.0, 2.3 * len(stages))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(stages), len(rows), sharey=True, squeeze=False)
    low = lowest_cka(results)
    for line_of_panels, stage in zip(grid, stages, strict=True):
        for axes, row in zip(line_of_panels, rows, strict=True):
            is_first, is_last_stage = axes is line_of_panels[0], stage == stages[-1]
            _dress(
                axes,
                row["name"] if stage == stages[0] else "",
                "block" if is_last_stage else "",
                f"{STAGES[stage]}\nCKA" if is_first else "",
            )
            axes.set_ylim(low, 1 + 0.02 * (1 - low))
            curves = cka_curves(row, stage)
            if curves is None:
                _say_missing(axes, missing_stage(results, row, stage))
                continue
            for ratio, values in zip(curves["ratios"], curves["values"], strict=True):
                axes.plot(
                    curves["blocks"],
                    _floats(values),
                    color=colour[ratio],
                    marker="o",
                    markersize=2.6,
                    linewidth=1.4,
                    label=percent(ratio),
                )
            step = math.ceil(len(curves["blocks"]) / 6)
            axes.set_xticks(curves["blocks"][::step])
    _ratio_bar(figure, grid, ratios, ramp)
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


def _ratio_bar(figure: Figure, grid: np.ndarray, ratios: list[float], ramp: np.ndarray) -> None:
    edges = np.arange(len(ratios) + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(edges, len(ratios)), ListedColormap(ramp))
    bar = figure.colorbar(
        scale, ax=list(grid.flat), ticks=range(len(ratios)), fraction=0.02, pad=0.01
    )
    bar.ax.set_yticklabels([percent(ratio) for ratio in ratios])
    bar.ax.tick_params(labelsize=8, colors=FAINT, length=0, which="both")
    bar.ax.set_title("dropped", fontsize=8, color=FAINT, loc="left")
    bar.outline.set_visible(False)


def cka_by_ratio(results: Results) -> Figure | None:
    """CKA at the last block over the fraction of dropped patches: one line per row.

    A panel for the pre-trained and one for the fine-tuned encoders; the model trained from
    scratch is in both, as the reference. None if nothing was measured.
    """
    first = baseline(results)
    if not any(cka_curves(row, stage) for row in results["rows"] for stage in STAGES):
        return None
    figure = Figure(figsize=(11.3, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    low = lowest_cka(results)
    labelled: dict[str, Any] = {}
    for axes, (stage, stage_name) in zip(panels, STAGES.items(), strict=True):
        _dress(
            axes,
            f"{stage_name} encoders",
            "patches dropped (%)",
            "CKA at the last block" if axes is panels[0] else "",
        )
        axes.set_ylim(low, 1 + 0.02 * (1 - low))
        for row in results["rows"]:
            is_reference = row is first
            curves = cka_curves(row, "finetuned" if is_reference else stage)
            if curves is None:
                continue
            name = f"{row['name']}, supervised" if is_reference else row["name"]
            (labelled[name],) = axes.plot(
                [100 * ratio for ratio in curves["ratios"]],
                _floats(values[-1] for values in curves["values"]),
                linewidth=1.6,
                markersize=4.5,
                label=name,
                **row_style(results, row),
            )
    _legend(figure, labelled)
    return figure


def pretraining_losses(results: Results) -> Figure | None:
    """The pre-training loss over the steps, one panel per row and each on its own scale.

    The objectives minimise different quantities, so heights do not compare across panels.
    """
    rows = [row for row in results["rows"] if (row.get("pretrain") or {}).get("loss")]
    if not rows:
        return None
    columns = min(len(rows), 5)
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(max(2.2 * columns, 3.2), 2.2 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, row in zip(panels, rows, strict=False):
        _dress(axes, row["name"], "step", "loss" if axes in panels[::columns] else "")
        colour = row_style(results, row)["color"]
        _curve(axes, row["pretrain"]["loss"], color=colour)
    for axes in panels[len(rows) :]:
        axes.remove()
    return figure


def finetuning_curves(results: Results) -> Figure | None:
    """Fine-tuning loss (cross-entropy) and test accuracy (percent) over the steps, all rows."""
    rows = [
        row
        for row in results["rows"]
        if (row.get("finetune") or {}).get("loss") or (row.get("finetune") or {}).get("accuracy")
    ]
    if not rows:
        return None
    figure = Figure(figsize=(11.3, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    _dress(loss, "training loss", "step", "cross-entropy")
    _dress(accuracy, "test accuracy", "step", "top-1 (%)")
    labelled: dict[str, Any] = {}
    for row in rows:
        style = row_style(results, row)
        plain = {key: style[key] for key in ("color", "linestyle", "zorder")}
        if row["finetune"].get("loss"):
            labelled[row["name"]] = _curve(loss, row["finetune"]["loss"], **plain)
        points = row["finetune"].get("accuracy")
        if points:
            steps, values = zip(*points, strict=True)
            (labelled[row["name"]],) = accuracy.plot(
                steps, [100 * v for v in _floats(values)], linewidth=1.5, markersize=4, **style
            )
    _legend(figure, labelled)
    return figure


def _legend(figure: Figure, labelled: dict[str, Any]) -> None:
    figure.legend(
        list(labelled.values()),
        list(labelled),
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
