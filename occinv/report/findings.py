"""Sentences about a run, computed from its numbers: what shows, what does not, what is noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from scipy.special import ndtri, stdtrit

from occinv.report.results import (
    ENCODERS,
    QUOTED_DROP_RATIO,
    Column,
    Results,
    Row,
    baseline,
    cka_curves,
    cka_encoders,
    column_of,
    last_block_cka,
    mean_and_std,
    method_rows,
    occluding_rows,
    percent,
    seed_values,
)

# Differences are quoted with the interval that holds the true one with this probability.
CONFIDENCE = 0.95
ONE_SEED = (
    "This is one seed: the intervals cover the choice of test images, not the variation between "
    "trainings."
)


class Finding(NamedTuple):
    """A claim, whether the run shows it, and one sentence per row.

    `verdict` is one of `shown`, `shown in part`, `unclear`, `not shown`, `not measured`
    and `note`.
    """

    claim: str
    verdict: str
    details: list[str]


class Difference(NamedTuple):
    """A row's number minus another row's, in points (percent) or in the column's unit.

    `margin` is half the width of its confidence interval, None if that is not known.
    """

    points: float
    margin: float | None
    sentence: str

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.margin is not None and abs(self.points) > self.margin


def findings(results: Results) -> list[Finding]:
    """Everything the numbers of `results` say, in the order in which the report prints it."""
    found = [accuracy_finding(results)]
    found += [claim_finding(results, claim) for claim in results.get("claims", ())]
    found += [cka_finding(results, encoder) for encoder in ENCODERS]
    found.append(psnr_finding(results))
    found.append(budget_note(results))
    return [finding for finding in found if finding is not None]


def binomial_standard_error(accuracy: float, num_test: int) -> float:
    """Standard error of a top-1 in [0, 1] that was counted on `num_test` images."""
    return math.sqrt(accuracy * (1 - accuracy) / num_test)


def difference(results: Results, row: Row, other: Row, column: Column) -> Difference | None:
    """How far a row's number lies from another row's, and whether that is noise.

    Several seeds: Student's interval of the differences seed by seed, which is wide for few seeds.
    One, of an accuracy: the binomial error of the difference on the test set (both models see the
    same images, so it errs on the careful side). None if either number is missing.
    """
    ours, theirs = seed_values(row, column), seed_values(other, column)
    if not ours or not theirs:
        return None
    mean, base = mean_and_std(ours)[0], mean_and_std(theirs)[0]
    points, unit = mean - base, column["unit"]
    num_test = (results.get("settings") or {}).get("num_test")
    if len(ours) == len(theirs) > 1:
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        spread = mean_and_std(differences)[1]
        assert spread is not None
        quantile = float(stdtrit(len(differences) - 1, (1 + CONFIDENCE) / 2))
        margin: float | None = quantile * spread / math.sqrt(len(differences))
        wins = sum(difference > 0 for difference in differences)
        evidence = (
            f"above it in {wins} of {len(differences)} seeds, "
            f"{percent(CONFIDENCE)} interval over seeds ± {margin:.1f}"
        )
    elif unit == "%" and num_test:
        quantile = float(ndtri((1 + CONFIDENCE) / 2))
        errors = (binomial_standard_error(value / 100, num_test) for value in (mean, base))
        margin = 100 * quantile * math.hypot(*errors)
        evidence = f"{percent(CONFIDENCE)} interval on {num_test} test images ± {margin:.1f}"
    else:
        margin = None
        missing = "the size of the test set is not recorded" if unit == "%" else "this is one seed"
        evidence = f"{missing}, so its noise is unknown"
    # What prints as 0.0 is called level, here and in the counts over rows.
    points = 0.0 if f"{abs(points):.1f}" == "0.0" else points
    where = "level with" if points == 0 else f"{abs(points):.1f} {_points(column)} "
    where += "above" if points > 0 else "below" if points < 0 else ""
    if margin is not None and abs(points) <= margin:
        evidence += ": not significant"
    sentence = f"{row['name']}: {mean:.1f} {unit}, {where} {other['name']} ({base:.1f} {unit})"
    return Difference(points, margin, f"{sentence}; {evidence}.")


def _points(column: Column) -> str:
    return "points" if column["unit"] == "%" else column["unit"]


def claim_finding(results: Results, claim: Mapping[str, Any]) -> Finding:
    """A claim of the table about two rows, held against its own numbers.

    `relation` is `above` (shown if the interval of the difference excludes zero) or `level`: no
    more than `within` apart. That is unclear where the interval reaches further than `within` to
    either side of the difference, unless all of it lies further from zero than `within`.
    """
    rows = {row["key"]: row for row in results["rows"]}
    row, other = rows.get(claim["row"]), rows.get(claim["than"])
    column = column_of(results, claim["column"])
    absent = [claim[end] for end in ("row", "than") if claim[end] not in rows]
    if row is None or other is None or column is None:
        return Finding(claim["text"], "not measured", [f"No row {key}." for key in absent])
    found = difference(results, row, other, column)
    if found is None:
        known = [one for one in (row, other) if seed_values(one, column)]
        return Finding(claim["text"], "not measured", _missing_rows([row, other], known))
    details = [f"{column['heading']}: {found.sentence}"]
    if found.margin is not None and len(seed_values(row, column)) == 1:
        details.append(ONE_SEED)
    if claim["relation"] == "above":
        above = "shown" if found.is_significant else "unclear"
        return Finding(claim["text"], above if found.points > 0 else "not shown", details)
    if claim["relation"] != "level":
        raise ValueError(f"relation {claim['relation']!r} of {claim['text']!r}: above or level")
    within = claim["within"]
    details.append(f"Level here means no more than {within:.1f} {_points(column)} apart.")
    is_outside = found.margin is not None and abs(found.points) - found.margin > within
    if not is_outside and (found.margin is None or found.margin > within):
        return Finding(claim["text"], "unclear", details)
    return Finding(claim["text"], _verdict(abs(found.points) <= within, False), details)


def accuracy_finding(results: Results) -> Finding | None:
    """The paper's first claim: pre-training by occlusion beats training from scratch."""
    first, rows, column = baseline(results), occluding_rows(results), column_of(results, "finetune")
    if first is None or not rows or column is None:
        return None
    differences = [(row, difference(results, row, first, column)) for row in rows]
    known = [(row, found) for row, found in differences if found is not None]
    claim = f"Fine-tuned accuracy lies above {first['name']}"
    if not known:
        return Finding(claim, "not measured", [])
    above = [found for _, found in known if found.points > 0]
    clearly_above = [found for found in above if found.is_significant]
    clearly_below = [found for _, found in known if found.points < 0 and found.is_significant]
    verdict = _verdict(len(clearly_above) == len(rows), bool(clearly_above))
    if above and not clearly_above:
        verdict = "unclear"
    claim += f" in {len(above)} of {len(known)} rows, significantly in {len(clearly_above)}"
    if clearly_below:
        claim += f" (significantly below in {len(clearly_below)})"
    details = [found.sentence for _, found in known]
    details += _missing_rows(rows, [row for row, _ in known])
    if all(len(seed_values(row, column)) == 1 for row, _ in known):
        details.append(f"{ONE_SEED} A difference inside its interval is not significant.")
    return Finding(claim, verdict, details)


def cka_finding(results: Results, encoder: str) -> Finding | None:
    """The paper's second claim: features change less under occlusion than a supervised model's."""
    first, rows = baseline(results), occluding_rows(results)
    if first is None or not rows or not cka_encoders(results):
        return None
    name = ENCODERS[encoder]
    dropped = percent(QUOTED_DROP_RATIO)
    claim = f"With {dropped} of the patches dropped, the {name} encoder's last-block CKA"
    reference = last_block_cka(first, "finetuned")
    known = [(row, last_block_cka(row, encoder)) for row in rows]
    measured = [(row, cka.value) for row, cka in known if cka is not None]
    if reference is None or not measured:
        return Finding(f"{claim} lies above the supervised model's", "not measured", [])
    details = []
    above = 0
    for row, value in measured:
        gap = value - reference.value
        is_level = f"{abs(gap):.3f}" == "0.000"
        above += gap > 0 and not is_level
        side = "level with" if is_level else f"{abs(gap):.3f} {'above' if gap > 0 else 'below'}"
        details.append(f"{row['name']}: {value:.3f}, {side} {reference.value:.3f}.")
    details += _missing_rows(rows, [row for row, _ in measured])
    curves = [cka_curves(row, encoder) or {} for row, _ in measured]
    seeds = max(len(found.get("by_seed", ())) for found in curves)
    details.append(
        f"Each is the mean over {seeds} seeds."
        if seeds > 1
        else "Each is a single measurement: how much of a small difference is chance is open."
    )
    claim += (
        f" lies above that of the model supervised from scratch ({reference.value:.3f}) "
        f"in {above} of {len(measured)} rows"
    )
    return Finding(claim, _verdict(above == len(rows), above > 0), details)


def psnr_finding(results: Results) -> Finding | None:
    """The paper's third claim: R-MAE keeps MAE's reconstruction, so the relaxation is a fair one.

    It has no verdict: the paper states no threshold. None if no row reconstructs.
    """
    decibels = {"key": "psnr", "unit": "dB"}
    rows = [row for row in results["rows"] if seed_values(row, decibels)]
    if not rows:
        return None
    psnr = [mean_and_std(seed_values(row, decibels))[0] for row in rows]
    best = rows[psnr.index(max(psnr))]
    reference = next((place for place, row in enumerate(rows) if row["name"] == "MAE"), None)
    details = []
    for place, row in enumerate(rows):
        sentence = f"{row['name']}: {psnr[place]:.1f} dB"
        removed = seed_values(row, {**decibels, "key": "psnr_removed"})
        if removed:
            sentence += f" ({mean_and_std(removed)[0]:.1f} dB over the removed patches alone)"
        if reference is not None and place != reference:
            gap = psnr[place] - psnr[reference]
            is_level = f"{abs(gap):.1f}" == "0.0"
            side = f"{abs(gap):.1f} dB {'above' if gap > 0 else 'below'}"
            sentence += f", {'level with' if is_level else side} MAE"
        details.append(sentence + ".")
    claim = f"Reconstruction from the visible patches: at best {max(psnr):.1f} dB"
    claim += f", by {best['name']}"
    return Finding(claim, "note", details)


def budget_note(results: Results) -> Finding | None:
    """Training time of the baseline against the others: pre-training is not free."""
    first = baseline(results)
    if first is None or not (first.get("finetune") or {}).get("seconds"):
        return None
    seconds = [
        row["pretrain"]["seconds"] + row["finetune"]["seconds"]
        for row in method_rows(results)
        if (row.get("pretrain") or {}).get("seconds") and (row.get("finetune") or {}).get("seconds")
    ]
    if not seconds:
        return None
    own = first["finetune"]["seconds"]
    return Finding(
        "The budgets differ",
        "note",
        [
            f"{first['name']} trained for {own:.0f} s; the pre-trained rows for "
            f"{sum(seconds) / len(seconds):.0f} s on average, pre-training and fine-tuning "
            "together."
        ],
    )


def _verdict(is_all: bool, is_any: bool) -> str:
    if is_all:
        return "shown"
    return "shown in part" if is_any else "not shown"


def _missing_rows(rows: list[Row], known: list[Row]) -> list[str]:
    absent = [row["name"] for row in rows if not any(row is other for other in known)]
    return [f"No number for {', '.join(absent)}."] if absent else []
