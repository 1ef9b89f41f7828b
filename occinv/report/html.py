"""One self-contained `report.html`: everything a run found, readable from a file:// address."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from occinv.report import figures, findings, table
from occinv.report.results import (
    ENCODERS,
    QUOTED_DROP_RATIO,
    STAGES,
    Column,
    Results,
    Row,
    baseline,
    cka_encoders,
    has_paper,
    last_block_cka,
    load_results,
    mean_and_std,
    percent,
    seed_counts,
    seed_values,
)

PIXELS_PER_INCH = 100
PICTURES = ("original", "masked", "reconstructed")


def write_html(results: Results | None, folder: str | Path, name: str = "report.html") -> Path:
    """Write `folder/name` in one atomic step and return its path.

    Args:
        results: the content of `results.json`; None reads it from `folder`.
        folder: where the page goes, and from where relative paths of pictures in `results` count.

    Raises:
        UserError: `results` is None and `folder` has no readable `results.json`.
    """
    folder = Path(folder)
    page = render(load_results(folder) if results is None else results, folder)
    path = folder / name
    unfinished = folder / f".{name}.{os.getpid()}"
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def render(results: Results, folder: str | Path) -> str:
    """The page as text. Every value is escaped; every picture is embedded."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = duration
    here = files("occinv.report")
    return environment.from_string(here.joinpath("page.html").read_text(encoding="utf-8")).render(
        style=here.joinpath("page.css").read_text(encoding="utf-8"),
        results=results,
        rows=[_row(results, row) for row in results["rows"]],
        columns=[{**column, "paper": has_paper(results, column)} for column in results["columns"]],
        encoders=[ENCODERS[encoder] for encoder in cka_encoders(results)],
        unfinished=[row for row in results["rows"] if row["status"] != "done"],
        has_baseline=baseline(results) is not None,
        has_paper=any(has_paper(results, column) for column in results["columns"]),
        created=_date(results.get("created")),
        dropped=percent(QUOTED_DROP_RATIO),
        cka_origin=table.cka_origin(results),
        paper_heading=table.paper_heading(results),
        seed_counts=seed_counts(results),
        findings=findings.findings(results),
        figures=_figures(results),
        stages=STAGES,
        lowest_cka=figures.lowest_cka(results),
        reconstructions=_reconstructions(results, Path(folder)),
    )


def duration(seconds: float | None) -> str:
    """Seconds for a reader: `8.4 s`, `2 min 05 s`, `3 h 07 min`."""
    if seconds is None:
        return table.MISSING
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _date(created: str | None) -> str:
    if not created:
        return "at an unrecorded time"
    moment = datetime.fromisoformat(created)
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def _row(results: Results, row: Row) -> dict[str, Any]:
    """What the table and the details of one row print."""
    stages = [(title, row[key]) for key, title in STAGES.items() if row.get(key)]
    spent = [stage["seconds"] for _, stage in stages if stage.get("seconds") is not None]
    epochs = row.get("paper_epochs")
    return {
        "name": row["name"],
        "status": row["status"],
        "error": row.get("error"),
        "is_baseline": row is baseline(results),
        "words": {words: row.get(key) or table.MISSING for key, words in table.WORDS.items()},
        "numbers": [
            {
                "ours": table.value_text(row, column),
                "gap": _gap(results, row, column),
                "paper": table.paper_text(row, column),
                "difference": table.difference_text(row, column),
            }
            for column in results["columns"]
        ],
        "paper_epochs": epochs and f"{epochs} epochs",
        "cka": [_cka(results, row, encoder) for encoder in cka_encoders(results)],
        "seconds": sum(spent) if spent else None,
        "stages": stages,
    }


def _gap(results: Results, row: Row, column: Column) -> str | None:
    """Signed points against the baseline, printed under the accuracy."""
    first = baseline(results)
    if first is None or row is first or column["unit"] != "%":
        return None
    ours, theirs = seed_values(row, column), seed_values(first, column)
    if not ours or not theirs:
        return None
    return table.signed(mean_and_std(ours)[0] - mean_and_std(theirs)[0])


def _cka(results: Results, row: Row, encoder: str) -> str:
    if last_block_cka(row, encoder) is None and row["status"] == "done":
        return figures.why_no_cka(results, row, encoder)
    return table.cka_text(row, encoder)


def _figures(results: Results) -> dict[str, dict[str, Any] | None]:
    """Every figure as a data URI and its width in CSS pixels, None where nothing can be drawn yet.

    The width follows the figure's, so that letters have one size in all of them.
    """
    drawn = {
        "accuracies": figures.accuracies(results),
        "cka_by_block": figures.cka_by_block(results),
        "cka_by_ratio": figures.cka_by_ratio(results),
        "pretraining_losses": figures.pretraining_losses(results),
    }
    drawn |= {
        stage: figures.training_curves(results, stage) for stage in STAGES if stage != "pretrain"
    }
    return {
        name: None
        if figure is None
        else {"uri": figures.data_uri(figure), "width": PIXELS_PER_INCH * figure.get_figwidth()}
        for name, figure in drawn.items()
    }


def _reconstructions(results: Results, folder: Path) -> list[Mapping[str, Any]]:
    """Per row with pictures: three lines (original, masked, reconstructed) of data URIs.

    A file that is named but not there becomes None: the page shows an empty place with its name.
    """
    return [
        {
            "name": row["name"],
            "psnr": table.value_text(row, {"key": "psnr", "unit": "dB"}),
            "count": len(row["reconstructions"]),
            "lines": [
                (
                    kind,
                    [
                        (triple[kind], _png(folder / triple[kind]))
                        for triple in row["reconstructions"]
                    ],
                )
                for kind in PICTURES
            ],
        }
        for row in results["rows"]
        if row.get("reconstructions")
    ]


def _png(path: Path) -> str | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
