"""Reading `results.json`, and the few numbers that table, figures and sentences all need.

A `row` has under `values`, for each key of `columns`, a number per finished seed (accuracies in
[0, 1], PSNR in dB), and under `paper` the paper's (percent, dB). What is missing was not measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from occinv.schema import UserError

Results = Mapping[str, Any]
Row = Mapping[str, Any]
Column = Mapping[str, Any]

# The drop ratio that tables quote: the mask ratio of MAE.
QUOTED_DROP_RATIO = 0.75

# What the paper's numbers are of, where the results do not say otherwise in `paper_setting`.
PAPER_SETTING = "ViT-B, ImageNet"

# States of an encoder in which its CKA is measured, and trainings, by their keys in a row.
ENCODERS = {"pretrained": "pre-trained", "finetuned": "fine-tuned"}
STAGES = {
    "pretrain": "Pre-training",
    "finetune": "Fine-tuning",
    "tenth": "Fine-tuning on 10 % of the labels",
    "linear": "Linear probe",
}


def percent(share: float) -> str:
    """`0.75` as `75 %`, the way every text of the report writes it."""
    return f"{100 * share:.0f} %"


class Cka(NamedTuple):
    """One linear CKA value in [0, 1] and where it comes from, for the caption."""

    value: float
    origin: str


def load_results(folder: str | Path) -> dict[str, Any]:
    """Read `folder/results.json`.

    Raises:
        UserError: the file is not there, is not JSON, or has no list of rows.
    """
    path = Path(folder) / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no results in {str(folder)!r}: expected the file {path}") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    for field in ("rows", "columns"):
        if not isinstance(results, dict) or not isinstance(results.get(field), list):
            raise UserError(
                f"{path} has no list of {field!r}: expected what this version of `occinv "
                "reproduce` writes; run it again"
            )
    return results


def column_of(results: Results, key: str) -> Column | None:
    """The column with this key, or None."""
    return next((column for column in results["columns"] if column["key"] == key), None)


def seed_values(row: Row, column: Column) -> list[float]:
    """What was measured, one number per finished seed, in the column's unit; accuracies in %."""
    scale = 100 if column["unit"] == "%" else 1
    return [scale * float(value) for value in row["values"].get(column["key"]) or ()]


def seed_counts(results: Results) -> list[int]:
    """Over how many seeds the rows' numbers are, each count once, in order."""
    counts = {len(seed_values(row, c)) for row in results["rows"] for c in results["columns"]}
    return sorted(counts - {0})


def paper_value(row: Row, column: Column) -> float | None:
    """The paper's number in the column's unit, if it has one."""
    return (row.get("paper") or {}).get(column["key"])


def has_paper(results: Results, column: Column) -> bool:
    """Whether the paper has a number for any row."""
    return any(paper_value(row, column) is not None for row in results["rows"])


def paper_difference(row: Row, column: Column) -> float | None:
    """Ours (mean over seeds) minus the paper's, in the column's unit; None if either is missing."""
    ours, theirs = seed_values(row, column), paper_value(row, column)
    return mean_and_std(ours)[0] - theirs if ours and theirs is not None else None


def mean_and_std(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter None for a single value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def baseline(results: Results) -> Row | None:
    """The row every other is compared with: the first one, if it has no pre-training.

    It starts from random weights, so its fine-tuned model is the one supervised from scratch. None
    too if the rows were measured on other data (`same_data` of `runs.compare`).
    """
    rows = results["rows"]
    is_first = rows and results.get("same_data", True) and rows[0].get("pretrain") is None
    return rows[0] if is_first else None


def method_rows(results: Results) -> list[Row]:
    """Every row but the baseline."""
    first = baseline(results)
    return [row for row in results["rows"] if row is not first]


def occluding_rows(results: Results) -> list[Row]:
    """The rows whose transformation is patch masking: what the paper's claims are about."""
    masking = "patch masking"
    return [row for row in method_rows(results) if row.get("transformation", masking) == masking]


def cka_curves(row: Row, stage: str) -> Mapping[str, Any] | None:
    """`ratios` [R], `blocks` [L], `values` [R][L] of stage `pretrained` or `finetuned`, or None."""
    return (row.get("cka") or {}).get(stage)


def cka_encoders(results: Results) -> list[str]:
    """The keys of `ENCODERS` of which some row has curves."""
    return [key for key in ENCODERS if any(cka_curves(row, key) for row in results["rows"])]


def last_block_cka(row: Row, stage: str, ratio: float = QUOTED_DROP_RATIO) -> Cka | None:
    """CKA between full and occluded image at the last block, with `ratio` of the patches dropped.

    Linear interpolation between the two measured ratios around `ratio`; outside the measured
    range the nearest one. `origin` says which of these it was. None if it was not measured.
    """
    curves = cka_curves(row, stage)
    if curves is None or not curves["ratios"]:
        return None
    points = sorted(zip(curves["ratios"], [values[-1] for values in curves["values"]], strict=True))
    below = max((p for p in points if p[0] <= ratio + 1e-9), default=points[0])
    above = min((p for p in points if p[0] >= ratio - 1e-9), default=points[-1])
    if below[1] is None or above[1] is None:
        return None
    if below[0] == above[0]:
        is_exact = abs(below[0] - ratio) < 1e-9
        return Cka(
            below[1], "measured" if is_exact else f"nearest measured, {percent(below[0])} dropped"
        )
    share = (ratio - below[0]) / (above[0] - below[0])
    value = below[1] + share * (above[1] - below[1])
    return Cka(value, f"interpolated between {percent(below[0])} and {percent(above[0])} dropped")
