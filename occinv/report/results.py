"""Reading `results.json`, and the few numbers that table, figures and sentences all need."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from occinv.schema import UserError

Results = Mapping[str, Any]
Row = Mapping[str, Any]

# The drop ratio that tables quote: the mask ratio of MAE.
QUOTED_DROP_RATIO = 0.75


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
    if not isinstance(results, dict) or not isinstance(results.get("rows"), list):
        raise UserError(f"{path} has no list of 'rows': expected what `occinv reproduce` writes")
    return results


def seed_accuracies(row: Row) -> list[float]:
    """Top-1 in [0, 1] after fine-tuning, one per seed; empty if there is none yet."""
    values = row.get("accuracies")
    if not values:
        values = [row.get("accuracy")]
    return [float(value) for value in values if value is not None]


def mean_and_std(values: list[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); the latter None for a single value."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def baseline(results: Results) -> Row | None:
    """The row every other is compared with: the first one, if it has no pre-training.

    It starts from random weights, so its fine-tuned model is the one supervised from scratch.
    """
    rows = results["rows"]
    return rows[0] if rows and rows[0].get("pretrain") is None else None


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
