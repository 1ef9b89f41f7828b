"""The results of `occinv sweep`: seeds grouped by setting, a plot for each field, the best."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from occinv.report import svg
from occinv.report.figures import style_axes
from occinv.report.html import Plot, as_plot, make_environment, readable_date
from occinv.report.results import MISSING
from occinv.report.statistics import Comparison, paired_t
from occinv.report.table import console_of_width
from occinv.schema import UserError, nearest
from occinv.train.disk import write_text

FILE = "sweep.json"
# The metric that a sweep compares, unless it is given: the first that is measured.
METRICS = ("top1", "probe/top1", "knn/top1", "loss", "train_loss")
PANELS_PER_LINE = 3


@dataclasses.dataclass(frozen=True)
class Measured:
    """A setting with its results.

    Attributes:
      name: Its values in words.
      setting: Its values by the path of a field.
      values: The metric for each seed; None where the run is not complete.
      command: The command of its run with the first seed.
      error: Why a run failed, or None.
    """

    name: str
    setting: Mapping[str, Any]
    values: Sequence[float | None]
    command: str
    error: str | None = None

    @property
    def known(self) -> list[float]:
        """The values of complete runs."""
        return [value for value in self.values if value is not None]

    @property
    def is_complete(self) -> bool:
        """Whether every seed has a value."""
        return None not in self.values

    @property
    def mean(self) -> float | None:
        """The mean over complete runs; None without any."""
        return statistics.fmean(self.known) if self.known else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean, by Student's t; None below two seeds."""
        if len(self.known) < 2:
            return None
        found = paired_t(self.known, [0.0] * len(self.known))
        return found.low, found.high


class Best(NamedTuple):
    """The best setting, the second, and the first minus the second, paired by seed.

    Attributes:
      first: The setting with the best mean.
      second: The setting with the next mean; None if there is only one.
      lead: The comparison; None below two seeds or without a second.
    """

    first: Measured
    second: Measured | None
    lead: Comparison | None


@dataclasses.dataclass(frozen=True)
class SweepResults:
    """What the runs of a sweep have measured so far.

    Attributes:
      config: The config that is swept.
      metric: The name of the metric.
      fields: The paths of the swept fields.
      seeds: The seeds.
      settings: The settings in the order of the sweep.
      command: The typed command.
      created: The date, in ISO form.
    """

    config: str
    metric: str
    fields: Sequence[str]
    seeds: Sequence[int]
    settings: Sequence[Measured]
    command: str = ""
    created: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return every field, with the mean and the interval of each setting."""
        settings = [
            {**dataclasses.asdict(each), "mean": each.mean, "interval": each.interval}
            for each in self.settings
        ]
        return {**dataclasses.asdict(self), "settings": settings}

    @property
    def lower_is_better(self) -> bool:
        """Whether the best setting has the lowest value: for losses."""
        return self.metric.rpartition("/")[2].endswith("loss")

    @property
    def best(self) -> Best | None:
        """The best of the settings whose seeds are all complete; None without any."""
        complete = [each for each in self.settings if each.is_complete]
        sign = 1 if self.lower_is_better else -1
        if not complete:
            return None
        first, *others = sorted(complete, key=lambda each: sign * statistics.fmean(each.known))
        second = others[0] if others else None
        lead = None
        if second is not None and len(self.seeds) > 1:
            lead = paired_t(first.known, second.known)
        return Best(first, second, lead)

    @property
    def conclusion(self) -> list[str]:
        """Sentences about the best setting, and about what it does not show."""
        best, count = self.best, len(self.settings)
        if best is None:
            return ["No setting is complete yet."]
        which = "lowest" if self.lower_is_better else "highest"
        seeds = f"{len(self.seeds)} seed" + "s" * (len(self.seeds) > 1)
        lines = [f"Best: {best.first.name}, the {which} mean {self.metric} over {seeds}."]
        if best.second is not None and best.lead is not None:
            lead = best.lead
            lines.append(
                f"It differs from the second, {best.second.name}, by {lead.difference:.4g} (95 % "
                f"interval {lead.low:.4g} to {lead.high:.4g}, paired by seed)."
            )
        elif best.second is not None:
            lines.append("One seed does not show how much a setting varies. Give --seeds 3.")
        if self.metric == "train_loss":
            lines.append(
                "train_loss is the last loss on training images: without validation images "
                "(data.eval_source) or an evaluator, no other metric is measured."
            )
        elif count > 1:
            lines.append(
                f"The best of {count} settings is optimistic: it was chosen by the validation "
                "images on which its value is measured. Measure it again on other images, or with "
                "new seeds."
            )
        if self.metric in ("loss", "train_loss") and any(
            path.startswith("objective.") for path in self.fields
        ):
            lines.append(
                "The settings change the objective, so their losses may not be comparable. Compare "
                "an evaluator, such as --metric knn/top1, which also measures finished runs."
            )
        unfinished = sum(not each.is_complete for each in self.settings)
        if unfinished:
            verb = "is" if unfinished == 1 else "are"
            lines.append(f"{unfinished} of {count} settings {verb} not complete.")
        return lines


def choose_metric(metric: str | None, found: Sequence[Mapping[str, float]]) -> str:
    """Return the metric to compare.

    Args:
      metric: The name that the user gives, or None.
      found: The metrics of each complete run.

    Raises:
      UserError: No complete run has the metric, or there is nothing to compare.
    """
    known = list(dict.fromkeys(name for metrics in found for name in metrics))
    if metric is not None:
        if found and metric not in known:
            raise UserError(f"--metric {metric!r} is not measured{nearest(metric, known)}")
        return metric
    if not found:
        return METRICS[0]
    chosen = next((name for name in METRICS if name in known), None)
    if chosen is None:
        raise UserError(
            "the runs measure no accuracy and no loss. Set data.eval_source, or "
            f"give --metric NAME, one of: {', '.join(known) or 'none'}"
        )
    return chosen


def number_text(value: float | None) -> str:
    """A value with four digits, or a dash."""
    return MISSING if value is None else f"{value:.4g}"


def interval_text(measured: Measured) -> str:
    """The interval of a setting, or a dash."""
    if measured.interval is None:
        return MISSING
    return " to ".join(map(number_text, measured.interval))


def print_sweep(results: SweepResults, console: Console | None = None) -> None:
    """Print one line for each setting, and the conclusion."""
    console = console_of_width(console)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("setting", f"mean {results.metric}", "95 % interval", "each seed"):
        table.add_column(Text(heading), overflow="fold")
    for each in results.settings:
        values = ", ".join(map(number_text, each.values))
        cells = number_text(each.mean), interval_text(each), each.error or values
        table.add_row(*map(Text, (each.name, *cells)))
    console.print(table)
    for line in results.conclusion:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def plot_fields(results: SweepResults) -> Figure | None:
    """One panel for each field with several values: the mean of each setting by its value.

    A line joins settings that agree in every other field. Bars are 95 % confidence intervals over
    seeds. The best setting is orange.

    Returns:
      The figure; None if nothing is measured or no field has several values.
    """
    measured = [each for each in results.settings if each.mean is not None]
    fields = [path for path in results.fields if len({_shown(s, path) for s in measured}) > 1]
    if not fields:
        return None
    width = min(len(fields), PANELS_PER_LINE)
    height = -(-len(fields) // width)
    figure = Figure(figsize=(3.4 * width, 2.8 * height), layout="constrained")
    grid = figure.subplots(height, width, squeeze=False, sharey=True)
    best = results.best
    for axes, path in zip(grid.flat, fields, strict=False):
        style_axes(axes, path, "", results.metric if axes in grid[:, 0] else "")
        _plot_field(axes, measured, path, best.first if best else None)
    for axes in grid.flat[len(fields) :]:
        axes.set_visible(False)
    return figure


def _plot_field(axes: Axes, measured: Sequence[Measured], path: str, best: Measured | None) -> None:
    """Draw the means by the values of one field, evenly spaced, numbers in their order."""
    values = {_shown(each, path): each.setting.get(path) for each in measured}
    order = list(values)
    if all(type(value) in (int, float) for value in values.values()):
        order.sort(key=float)
    lines: dict[str, list[tuple[int, float]]] = {}
    for each in measured:
        if each.mean is None:
            continue
        others = {p: value for p, value in each.setting.items() if p != path}
        place = order.index(_shown(each, path))
        lines.setdefault(repr(sorted(others.items())), []).append((place, each.mean))
        low, high = each.interval or (each.mean, each.mean)
        error = [[each.mean - low], [high - each.mean]]
        color = svg.COLORS[1] if each is best else svg.COLORS[0]
        axes.errorbar(place, each.mean, yerr=error, fmt="o", color=color, capsize=3)
    for points in lines.values():
        places, means = zip(*sorted(points), strict=True)
        axes.plot(places, means, color=svg.FAINT, linewidth=1, zorder=1)
    axes.set_xticks(range(len(order)), order)
    axes.margins(x=0.15)


def _shown(measured: Measured, path: str) -> str:
    """The value of a field in words."""
    return str(measured.setting[path]) if path in measured.setting else "as in the config"


def write_page(results: SweepResults, folder: Path) -> Path:
    """Write the page `report.html` to `folder`, and return its path."""
    figure = plot_fields(results)
    plot: Plot | None = None if figure is None else as_plot(figure, "sweep")
    best = results.best
    page = (
        make_environment()
        .get_template("sweep.html")
        .render(
            results=results,
            best=best.first if best else None,
            plot=plot,
            figure_colors=svg.stylesheet([plot.svg] if plot else []),
            created=readable_date(results.created),
            number=number_text,
            interval=interval_text,
        )
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"
