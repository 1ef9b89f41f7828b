"""Sentences about the numbers of a run: the paper's claims, judged with confidence intervals."""

from __future__ import annotations

import math
import statistics
from typing import Literal, NamedTuple

from scipy.special import ndtri, stdtrit

from occinv.report.results import (
    ENCODERS,
    PSNR,
    PSNR_REMOVED,
    QUOTED_DROP_RATIO,
    Claim,
    Column,
    Results,
    Row,
    mean_and_std,
    percent,
)

CONFIDENCE = 0.95  # of the interval around a difference
ONE_SEED = (
    "One seed: the interval covers the choice of test images, not the variation between trainings."
)

Verdict = Literal[
    "supported", "partly supported", "inconclusive", "not supported", "not measured", "note"
]


class Finding(NamedTuple):
    """A statement about the run, its verdict, and one sentence per row."""

    claim: str
    verdict: Verdict
    details: list[str]


class Difference(NamedTuple):
    """The value of one row minus that of another.

    Attributes:
      value: In points (percent) or in the column's unit.
      margin: Half the width of the confidence interval; None if it is unknown.
      sentence: Both values, the difference, and the interval.
    """

    value: float
    margin: float | None
    sentence: str

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.margin is not None and abs(self.value) > self.margin


def findings(results: Results) -> list[Finding]:
    """All findings, in the order of the page."""
    found = [
        accuracy_finding(results),
        *(claim_finding(results, claim) for claim in results.claims),
        *(cka_finding(results, encoder) for encoder in ENCODERS),
        psnr_finding(results),
        budget_note(results),
    ]
    return [finding for finding in found if finding is not None]


def binomial_standard_error(accuracy: float, num_test: int) -> float:
    """The standard error of a top-1 accuracy in [0, 1] on `num_test` images."""
    return math.sqrt(accuracy * (1 - accuracy) / num_test)


def difference(results: Results, row: Row, other: Row, column: Column) -> Difference | None:
    """Compare two rows in one column; None if either has no value.

    With several seeds, the interval is Student's t interval of the differences seed by seed, which
    is wide for few seeds. With one seed, it is that of the binomial error of both accuracies on the
    test set. Both models see the same images, so this interval is too wide rather than too narrow.
    """
    ours, theirs = row.seed_values(column), other.seed_values(column)
    if not ours or not theirs:
        return None
    mean, base = mean_and_std(ours)[0], mean_and_std(theirs)[0]
    num_test = results.settings.get("num_test")
    margin: float | None = None
    if len(ours) == len(theirs) > 1:
        gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
        quantile = float(stdtrit(len(gaps) - 1, (1 + CONFIDENCE) / 2))
        margin = quantile * statistics.stdev(gaps) / math.sqrt(len(gaps))
        wins = sum(gap > 0 for gap in gaps)
        evidence = f"above it in {wins} of {len(gaps)} seeds, {_interval('over seeds', margin)}"
    elif column.unit == "%" and isinstance(num_test, int) and num_test > 0:
        errors = (binomial_standard_error(value / 100, num_test) for value in (mean, base))
        margin = 100 * float(ndtri((1 + CONFIDENCE) / 2)) * math.hypot(*errors)
        evidence = _interval(f"on {num_test} test images", margin)
    else:
        reason = "the size of the test set is not recorded" if column.unit == "%" else "one seed"
        evidence = f"the noise is unknown ({reason})"
    # A difference that is printed as 0.0 counts as zero.
    gap = 0.0 if f"{abs(mean - base):.1f}" == "0.0" else mean - base
    if margin is not None and abs(gap) <= margin:
        evidence += ": not significant"
    side = _side(gap, 1, f" {_unit(column)}")
    values = f"{row.name}: {mean:.1f} {column.unit}, {side} {other.name} ({base:.1f} {column.unit})"
    return Difference(gap, margin, f"{values}; {evidence}.")


def claim_finding(results: Results, claim: Claim) -> Finding:
    """Judge a claim of the paper about two rows by our numbers.

    `above` is supported if the interval of the difference excludes zero. `equal` is supported if
    the difference is at most `within` and the interval is no wider than that. It is inconclusive if
    the interval is wider, unless the whole interval is further from zero than `within`.
    """
    rows = {row.key: row for row in results.rows}
    absent = [key for key in (claim.row, claim.than) if key not in rows]
    column = results.column(claim.column)
    if absent or column is None:
        return Finding(claim.text, "not measured", [f"No row {key}." for key in absent])
    row, other = rows[claim.row], rows[claim.than]
    found = difference(results, row, other, column)
    if found is None:
        known = [one for one in (row, other) if one.seed_values(column)]
        return Finding(claim.text, "not measured", _missing_rows([row, other], known))
    details = [f"{column.heading}: {found.sentence}"]
    if found.margin is not None and len(row.seed_values(column)) == 1:
        details.append(ONE_SEED)
    verdict: Verdict
    if claim.relation == "above":
        verdict = "supported" if found.is_significant else "inconclusive"
        return Finding(claim.text, verdict if found.value > 0 else "not supported", details)
    details.append(f"Equal means a difference of at most {claim.within:.1f} {_unit(column)}.")
    is_close = abs(found.value) <= claim.within
    is_outside = found.margin is not None and abs(found.value) - found.margin > claim.within
    if not is_outside and (found.margin is None or found.margin > claim.within):
        verdict = "inconclusive"
    else:
        verdict = "supported" if is_close else "not supported"
    return Finding(claim.text, verdict, details)


def accuracy_finding(results: Results) -> Finding | None:
    """The paper's first claim: pretraining with occlusion improves on random initialization."""
    first, rows, column = results.baseline, results.occluding, results.column("finetune")
    if first is None or not rows or column is None:
        return None
    differences = [(row, difference(results, row, first, column)) for row in rows]
    known = [(row, found) for row, found in differences if found is not None]
    claim = f"Fine-tuned accuracy is above {first.name}"
    if not known:
        return Finding(claim, "not measured", [])
    above = [found for _, found in known if found.value > 0]
    clearly_above = [found for found in above if found.is_significant]
    clearly_below = [found for _, found in known if found.value < 0 and found.is_significant]
    verdict = _verdict(len(clearly_above), len(rows))
    if above and not clearly_above:
        verdict = "inconclusive"
    claim += f" in {len(above)} of {len(known)} rows, significantly in {len(clearly_above)}"
    if clearly_below:
        claim += f" (significantly below in {len(clearly_below)})"
    details = [found.sentence for _, found in known]
    details += _missing_rows(rows, [row for row, _ in known])
    if all(len(row.seed_values(column)) == 1 for row, _ in known):
        details.append(f"{ONE_SEED} A difference inside its interval is not significant.")
    return Finding(claim, verdict, details)


def cka_finding(results: Results, encoder: str) -> Finding | None:
    """The paper's second claim: occlusion changes the features less than a supervised model's."""
    first, rows = results.baseline, results.occluding
    if first is None or not rows or not results.cka_encoders:
        return None
    claim = (
        f"With {percent(QUOTED_DROP_RATIO)} of the patches dropped, the last-block CKA of the "
        f"{ENCODERS[encoder]} encoder is above that of Random init after fine-tuning"
    )
    reference = first.last_block_cka("finetuned")
    known = [(row, cka.value) for row in rows if (cka := row.last_block_cka(encoder)) is not None]
    if reference is None or not known:
        return Finding(claim, "not measured", [])
    sides = [_side(value - reference.value, 3) for _, value in known]
    details = [
        f"{row.name}: {value:.3f}, {side} {reference.value:.3f}."
        for (row, value), side in zip(known, sides, strict=True)
    ]
    details += _missing_rows(rows, [row for row, _ in known])
    curves = [row.cka[encoder] for row, _ in known]
    seeds = max(len(found.by_seed) for found in curves if found is not None)
    details.append(
        f"Each value is the mean over {seeds} seeds."
        if seeds > 1
        else "Each value is one measurement, so its noise is unknown."
    )
    above = sum(side.endswith("above") for side in sides)
    claim += f" ({reference.value:.3f}) in {above} of {len(known)} rows"
    return Finding(claim, _verdict(above, len(rows)), details)


def psnr_finding(results: Results) -> Finding | None:
    """The paper's third claim: R-MAE reconstructs as well as MAE.

    It has no verdict, because the paper states no threshold. None if no row reconstructs.
    """
    rows = [row for row in results.rows if row.seed_values(PSNR)]
    if not rows:
        return None
    psnr = {row.key: mean_and_std(row.seed_values(PSNR))[0] for row in rows}
    mae = next((row for row in rows if row.name == "MAE"), None)
    details = []
    for row in rows:
        sentence = f"{row.name}: {psnr[row.key]:.1f} dB"
        if removed := row.seed_values(PSNR_REMOVED):
            sentence += f" ({mean_and_std(removed)[0]:.1f} dB over the removed patches alone)"
        if mae is not None and row is not mae:
            sentence += f", {_side(psnr[row.key] - psnr[mae.key], 1, ' dB')} MAE"
        details.append(sentence + ".")
    best = max(rows, key=lambda row: psnr[row.key])
    claim = f"Best reconstruction from the visible patches: {psnr[best.key]:.1f} dB, by {best.name}"
    return Finding(claim, "note", details)


def budget_note(results: Results) -> Finding | None:
    """The training time of the baseline and of the pretrained rows."""
    first = results.baseline
    if first is None or first.finetune is None or not first.finetune.seconds:
        return None
    seconds = [
        row.pretrain.seconds + row.finetune.seconds
        for row in results.methods
        if row.pretrain and row.pretrain.seconds and row.finetune and row.finetune.seconds
    ]
    if not seconds:
        return None
    sentence = (
        f"{first.name} trained for {first.finetune.seconds:.0f} s; the pretrained rows for "
        f"{sum(seconds) / len(seconds):.0f} s on average, pretraining and fine-tuning together."
    )
    return Finding("The training budgets differ", "note", [sentence])


def _interval(of: str, margin: float) -> str:
    return f"{percent(CONFIDENCE)} confidence interval {of} ± {margin:.1f}"


def _unit(column: Column) -> str:
    return "points" if column.unit == "%" else column.unit


def _side(gap: float, decimals: int, unit: str = "") -> str:
    """`1.3 points above`, `1.3 points below`, or `equal to` if the gap is printed as zero."""
    size = f"{abs(gap):.{decimals}f}"
    if float(size) == 0:
        return "equal to"
    return f"{size}{unit} {'above' if gap > 0 else 'below'}"


def _verdict(supporting: int, total: int) -> Verdict:
    if supporting == total:
        return "supported"
    return "partly supported" if supporting else "not supported"


def _missing_rows(rows: list[Row], known: list[Row]) -> list[str]:
    absent = [row.name for row in rows if not any(row is other for other in known)]
    return [f"No number for {', '.join(absent)}."] if absent else []
