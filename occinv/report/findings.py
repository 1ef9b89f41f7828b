"""Sentences about a run, computed from its numbers: what shows, what does not, what is noise."""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.special import ndtri, stdtrit

from occinv.report.results import (
    QUOTED_DROP_RATIO,
    Results,
    Row,
    baseline,
    last_block_cka,
    mean_and_std,
    method_rows,
    occluding_rows,
    percent,
    seed_accuracies,
)

# Differences are quoted with the interval that holds the true one with this probability.
CONFIDENCE = 0.95


class Finding(NamedTuple):
    """A claim, whether the run shows it, and one sentence per row.

    `verdict` is one of `shown`, `shown in part`, `unclear`, `not shown`, `not measured`
    and `note`.
    """

    claim: str
    verdict: str
    details: list[str]


class Difference(NamedTuple):
    """Fine-tuned accuracy of a row minus the baseline's, in points (percent).

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
    found += [cka_finding(results, stage) for stage in ("pretrained", "finetuned")]
    found.append(psnr_finding(results))
    found.append(budget_note(results))
    return [finding for finding in found if finding is not None]


def binomial_standard_error(accuracy: float, num_test: int) -> float:
    """Standard error of a top-1 in [0, 1] that was counted on `num_test` images."""
    return math.sqrt(accuracy * (1 - accuracy) / num_test)


def accuracy_difference(results: Results, row: Row) -> Difference | None:
    """How far a row's fine-tuned accuracy lies from the baseline's, and whether that is noise.

    One seed: the binomial error of the difference on the test set (both models see the same
    images, so it errs on the careful side). Several: Student's interval of the differences seed
    by seed, which is wide for few seeds. None if either accuracy is missing.
    """
    first = baseline(results)
    if first is None:
        return None
    ours, theirs = seed_accuracies(row), seed_accuracies(first)
    if not ours or not theirs:
        return None
    mean, base = mean_and_std(ours)[0], mean_and_std(theirs)[0]
    points = 100 * (mean - base)
    margin, evidence = None, "the size of the test set is not recorded, so its noise is unknown"
    if len(ours) == len(theirs) > 1:
        differences = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
        spread = mean_and_std(differences)[1]
        assert spread is not None
        quantile = float(stdtrit(len(differences) - 1, (1 + CONFIDENCE) / 2))
        margin = quantile * spread / math.sqrt(len(differences))
        wins = sum(difference > 0 for difference in differences)
        evidence = (
            f"above it in {wins} of {len(differences)} seeds, "
            f"{percent(CONFIDENCE)} interval over seeds ± {margin:.1f}"
        )
    elif num_test := (results.get("settings") or {}).get("num_test"):
        quantile = float(ndtri((1 + CONFIDENCE) / 2))
        margin = (
            100
            * quantile
            * math.hypot(
                binomial_standard_error(mean, num_test), binomial_standard_error(base, num_test)
            )
        )
        evidence = f"{percent(CONFIDENCE)} interval on {num_test} test images ± {margin:.1f}"
    # What prints as 0.0 is called level, here and in the counts over rows.
    points = 0.0 if f"{abs(points):.1f}" == "0.0" else points
    where = "level with" if points == 0 else f"{abs(points):.1f} points "
    where += "above" if points > 0 else "below" if points < 0 else ""
    if margin is not None and abs(points) <= margin:
        evidence += ": not significant"
    sentence = (
        f"{row['name']}: {100 * mean:.1f} %, {where} {first['name']} "
        f"({100 * base:.1f} %); {evidence}."
    )
    return Difference(points, margin, sentence)


def accuracy_finding(results: Results) -> Finding | None:
    """The paper's first claim: pre-training by occlusion beats training from scratch."""
    first, rows = baseline(results), occluding_rows(results)
    if first is None or not rows:
        return None
    differences = [(row, accuracy_difference(results, row)) for row in rows]
    known = [(row, difference) for row, difference in differences if difference is not None]
    claim = f"Fine-tuned accuracy lies above {first['name']}"
    if not known:
        return Finding(claim, "not measured", [])
    above = [difference for _, difference in known if difference.points > 0]
    clearly_above = [difference for difference in above if difference.is_significant]
    clearly_below = [d for _, d in known if d.points < 0 and d.is_significant]
    verdict = _verdict(len(clearly_above) == len(rows), bool(clearly_above))
    if above and not clearly_above:
        verdict = "unclear"
    claim += f" in {len(above)} of {len(known)} rows, significantly in {len(clearly_above)}"
    if clearly_below:
        claim += f" (significantly below in {len(clearly_below)})"
    details = [difference.sentence for _, difference in known]
    details += _missing_rows(rows, [row for row, _ in known])
    if all(len(seed_accuracies(row)) == 1 for row, _ in known):
        details.append(
            "This is one seed: the intervals cover the choice of test images, not the variation "
            "between trainings. A difference inside its interval is not significant."
        )
    return Finding(claim, verdict, details)


def cka_finding(results: Results, stage: str) -> Finding | None:
    """The paper's second claim: features change less under occlusion than a supervised model's."""
    first, rows = baseline(results), occluding_rows(results)
    if first is None or not rows:
        return None
    name = {"pretrained": "pre-trained", "finetuned": "fine-tuned"}[stage]
    dropped = percent(QUOTED_DROP_RATIO)
    claim = f"With {dropped} of the patches dropped, the {name} encoder's last-block CKA"
    reference = last_block_cka(first, "finetuned")
    known = [(row, last_block_cka(row, stage)) for row in rows]
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
    seeds = max(len(seed_accuracies(row)) for row, _ in measured)
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
    rows = [row for row in results["rows"] if row.get("psnr") is not None]
    if not rows:
        return None
    best = max(rows, key=lambda row: row["psnr"])
    reference = next((row for row in rows if row["name"] == "MAE"), None)
    details = []
    for row in rows:
        sentence = f"{row['name']}: {row['psnr']:.1f} dB"
        if row.get("psnr_removed") is not None:
            sentence += f" ({row['psnr_removed']:.1f} dB over the removed patches alone)"
        if reference is not None and row is not reference:
            gap = row["psnr"] - reference["psnr"]
            is_level = f"{abs(gap):.1f}" == "0.0"
            side = f"{abs(gap):.1f} dB {'above' if gap > 0 else 'below'}"
            sentence += f", {'level with' if is_level else side} MAE"
        details.append(sentence + ".")
    claim = f"Reconstruction from the visible patches: at best {best['psnr']:.1f} dB"
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
            f"together. A longer training from scratch is not part of this comparison."
        ],
    )


def _verdict(is_all: bool, is_any: bool) -> str:
    if is_all:
        return "shown"
    return "shown in part" if is_any else "not shown"


def _missing_rows(rows: list[Row], known: list[Row]) -> list[str]:
    absent = [row["name"] for row in rows if not any(row is other for other in known)]
    return [f"No number for {', '.join(absent)}."] if absent else []
