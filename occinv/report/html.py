"""The page of a results file: one self-contained HTML file that needs no server."""

from __future__ import annotations

import base64
import functools
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from occinv.evaluators import QUOTED_RATIO
from occinv.paths import as_path, in_bucket
from occinv.report import figures, svg
from occinv.report.batch_size import by_batch_size, references
from occinv.report.claims import claims
from occinv.report.findings import findings
from occinv.report.results import (
    ENCODERS,
    MISSING,
    PSNR,
    STAGES,
    Column,
    Results,
    Row,
    load_results,
    mean_and_std,
    percent,
    setting_name,
)
from occinv.report.table import (
    caption,
    cka_text,
    duration,
    number,
    signed,
    time_caption,
    time_text,
)
from occinv.train.disk import write_text

PIXELS_PER_INCH = 100


class Plot(NamedTuple):
    """A figure as an SVG element, and its width in CSS pixels.

    The width is proportional to the figure's, so that text has the same size in every figure.
    """

    svg: str
    width: float


def write_html(results: Results | None, folder: str | Path, name: str = "report.html") -> Path:
    """Write the page to `folder/name`, atomically.

    Args:
      results: What the page shows; None reads `results.json` in `folder`.
      folder: The folder of the page. Relative paths of pictures start here.
      name: The file's name.

    Returns:
      The path of the page.

    Raises:
      UserError: `results` is None and `folder` has no readable `results.json`.
    """
    folder = as_path(folder)
    page = render(load_results(folder) if results is None else results, folder)
    write_text(folder / name, page)
    return folder / name


def make_environment() -> Environment:
    """The templates of this folder. They escape all values."""
    return Environment(
        loader=PackageLoader("occinv.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(results: Results, folder: str | Path) -> str:
    """The page as text. All values are escaped, and all pictures are embedded."""
    environment = make_environment()
    environment.filters["duration"] = duration
    environment.filters["png"] = lambda path: _png(as_path(folder), path)
    plots = _plots(results)
    return environment.get_template("page.html").render(
        results=results,
        unfinished=[row for row in results.rows if row.status != "done"],
        encoders=ENCODERS,
        stages=STAGES,
        psnr=PSNR,
        created=readable_date(results.created),
        caption=caption(results),
        dropped=percent(QUOTED_RATIO),
        has_floor=any(c.floor for row in results.rows for c in row.cka.values() if c),
        number=number,
        gain=functools.partial(gain, results),
        cka=functools.partial(cka, results),
        findings=findings(results),
        plots=plots,
        references=references(results),
        figure_colors=svg.stylesheet(plot.svg for plot in plots.values() if plot is not None),
        time=time_text,
        time_caption=time_caption(results),
        setting_name=setting_name,
        lowest_cka=figures.lowest_cka(results),
    )


def readable_date(created: str | None) -> str:
    """A date in ISO form as a reader writes it."""
    if not created:
        return "at an unknown time"
    moment = datetime.fromisoformat(created)
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def gain(results: Results, row: Row, column: Column) -> str:
    """The difference to the baseline in points; empty without one, and for other units."""
    first = results.baseline
    if first is None or row is first or column.unit != "%":
        return ""
    ours, base = row.seed_values(column), first.seed_values(column)
    return signed(mean_and_std(ours)[0] - mean_and_std(base)[0]) if ours and base else ""


def cka(results: Results, row: Row, encoder: str) -> str:
    """The last-block CKA, or why a complete row has none."""
    text = cka_text(row, encoder)
    is_missing = text == MISSING and row.status == "done"
    return figures.missing_cka_reason(results, row, encoder) if is_missing else text


def _plots(results: Results) -> dict[str, Plot | None]:
    """The figures by name; None where there is nothing to draw."""
    is_batch = results.layout == "batch"  # it has too many rows for a panel or a line for each
    drawn = {
        "batch_size": by_batch_size(results),
        "accuracies": None if is_batch else figures.accuracies(results),
        "cka_by_block": None if is_batch else figures.cka_by_block(results),
        "cka_by_ratio": None if is_batch else figures.cka_by_ratio(results),
        "claims": claims(results),
        "pretrain": figures.pretraining_losses(results),
        "monitors": figures.monitors(results),
    }
    stages = [] if is_batch else [key for key in STAGES if key != "pretrain"]
    drawn |= {key: figures.training_curves(results, key) for key in stages}
    return {
        name: None if figure is None else as_plot(figure, name) for name, figure in drawn.items()
    }


def as_plot(figure: Figure, name: str) -> Plot:
    """The figure as an element of the page. `name` is unique on the page."""
    return Plot(svg.as_svg(figure, name), PIXELS_PER_INCH * figure.get_figwidth())


def _png(folder: Path, path: str) -> str | None:
    """The picture as a URL that contains it; None without the file, or if it is not a PNG."""
    try:
        content = (as_path(path) if in_bucket(path) else folder / path).read_bytes()
    except OSError:
        return None
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
