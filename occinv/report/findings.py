"""Sentences about the numbers of a run: the paper's claims, judged by tests."""

from __future__ import annotations

from typing import Literal, NamedTuple

from occinv.evaluators import QUOTED_RATIO, quoted_place
from occinv.report import statistics
from occinv.report.batch_size import DECIDES, curves, steps_of, verdict_of
from occinv.report.differences import (
    Relation,
    by_seed,
    difference,
    interval_text,
    noise_of,
    p_text,
    sentence,
    side_text,
    unit_text,
)
from occinv.report.results import (
    ENCODERS,
    PSNR,
    PSNR_REMOVED,
    Claim,
    Column,
    Results,
    Row,
    mean_and_std,
    percent,
)
from occinv.report.statistics import ALPHA, Comparison
from occinv.report.table import three_decimals

ONE_SEED = (
    "One seed: the test covers the choice of validation images, not the variation between "
    "trainings."
)

POOLED = (
    "The seeds are few, so the noise of a difference is estimated from all rows. The tests assume "
    "that it is the same in each."
)

Verdict = Literal[
    "supported", "partly supported", "inconclusive", "not supported", "not measured", "note"
]
Pair = tuple[str, str, str, Relation]  # the keys of two rows and of a column, and a relation


class Finding(NamedTuple):
    """A statement about the run, its verdict, and one sentence per row."""

    claim: str
    verdict: Verdict
    details: list[str]


def findings(results: Results) -> list[Finding]:
    """All findings, in the order of the page."""
    adjusted = adjusted_p_values(results)
    found = [
        None if states_conclusions(results) else accuracy_finding(results, adjusted),
        *(claim_finding(results, claim, adjusted) for claim in results.claims),
        *(cka_finding(results, encoder, adjusted) for encoder in ENCODERS),
        comparison_note(results, adjusted),
        psnr_finding(results),
        *batch_findings(results, adjusted),
        budget_note(results),
        tests_note(results, adjusted),
    ]
    return [finding for finding in found if finding is not None]


def adjusted_p_values(results: Results) -> dict[Pair, float]:
    """The p-value of every comparison of the page, corrected by Holm's method for their number."""
    rows = {row.key: row for row in results.rows}
    pairs: list[tuple[Pair, float]] = [
        ((row.key, results.baseline.key, "finetune", "above"), 0.0)
        for row in judged_rows(results)
        if results.baseline is not None
    ]
    pairs += [((c.row, c.than, c.column, c.relation), c.within) for c in results.claims]
    pairs += [
        ((row.key, smaller.key, DECIDES, "above"), 0.0)
        for curve in curves(results)
        for row, smaller in steps_of(curve)
    ]
    pairs += [
        ((row.key, first.key, column.key, "above"), 0.0)
        for row, first, column in compared_pairs(results)
    ]
    p_values: dict[Pair, float] = {}
    for pair, within in pairs:
        column = results.column(pair[2])
        if column is None or not {pair[0], pair[1]} <= set(rows):
            continue
        found = difference(results, rows[pair[0]], rows[pair[1]], column, pair[3], within)
        if found is not None and found.comparison is not None:
            p_values[pair] = found.comparison.p_value
    for encoder in ENCODERS:
        for row in judged_rows(results):
            test = cka_test(results, row, encoder)
            if test is not None and results.baseline is not None:
                p_values[row.key, results.baseline.key, encoder, "above"] = test.p_value
    return dict(zip(p_values, statistics.holm(list(p_values.values())).tolist(), strict=True))


def states_conclusions(results: Results) -> bool:
    """Whether the claims of a table name the conclusions that they test."""
    return any(claim.conclusion for claim in results.claims)


def judged_rows(results: Results) -> list[Row]:
    """The rows that are compared with the baseline in every accuracy and CKA.

    A table that tests conclusions has stated which: those that a claim compares with it.
    """
    first = results.baseline
    stated = {c.row for c in results.claims if c.conclusion and first and c.than == first.key}
    return [row for row in results.occluding if not stated or row.key in stated]


def rows_text(results: Results) -> str:
    """`rows`, or which of the rows are judged."""
    others = [row for row in results.methods if not row.is_floor and row not in results.occluding]
    return "rows that mask patches" if others and not states_conclusions(results) else "rows"


def cka_by_seed(results: Results, row: Row, encoder: str) -> tuple[list[float], list[float]] | None:
    """The quoted CKA of a row and of the supervised model for each seed; None for one seed."""
    base = results.baseline
    if base is None or row.seeds.get(encoder) != base.seeds.get("finetuned"):
        return None
    ours, theirs = (
        [values[quoted_place(curves.ratios)][-1] for values in curves.by_seed] if curves else []
        for curves in (row.cka.get(encoder), base.cka.get("finetuned"))
    )
    if len(ours) != len(theirs) or len(ours) < 2:
        return None
    return ours, theirs


def cka_test(results: Results, row: Row, encoder: str) -> Comparison | None:
    """Compare the quoted CKA of a row with that of the supervised model, over seeds."""
    seeds = {one.key: cka_by_seed(results, one, encoder) for one in judged_rows(results)}
    known = {key: both for key, both in seeds.items() if both is not None}
    if row.key not in known:
        return None
    values = [ours for ours, _ in known.values()] + [known[row.key][1]]
    noise = statistics.pooled_noise(values) if len(values) > 2 else None
    return statistics.paired_t(*known[row.key], pooled=noise)


def claim_finding(results: Results, claim: Claim, adjusted: dict[Pair, float]) -> Finding:
    """Judge a claim of the paper about two rows by our numbers.

    `above` is supported if the difference is significant. `equal` is supported if a difference of
    `within` or more is rejected; it is not supported if the interval is outside ±`within`. The
    p-values are those of `adjusted_p_values`.
    """
    rows = {row.key: row for row in results.rows}
    absent = [key for key in (claim.row, claim.than) if key not in rows]
    column = results.column(claim.column)
    if absent or column is None:
        return Finding(claim.text, "not measured", [f"No row {key}." for key in absent])
    row, other = rows[claim.row], rows[claim.than]
    found = difference(results, row, other, column, claim.relation, claim.within)
    if found is None:
        known = [one for one in (row, other) if one.seed_values(column)]
        return Finding(claim.text, "not measured", _missing_rows([row, other], known))
    p_value = adjusted.get((claim.row, claim.than, claim.column, claim.relation))
    details = [f"{column.heading}: {sentence(row, other, column, found, p_value)}"]
    if found.comparison is not None and len(row.seed_values(column)) == 1:
        details.append(ONE_SEED)
    is_shown = p_value is not None and p_value < ALPHA
    verdict: Verdict = "supported" if is_shown else "inconclusive"
    if claim.relation == "above":
        return Finding(claim.text, verdict if found.value > 0 else "not supported", details)
    margin = f"{claim.within:.1f} {unit_text(column)}"
    details.append(f"Equal means that a difference of {margin} or more is rejected.")
    test = found.comparison
    if test is not None and (test.low > claim.within or test.high < -claim.within):
        verdict = "not supported"
    return Finding(claim.text, verdict, details)


def accuracy_finding(results: Results, adjusted: dict[Pair, float]) -> Finding | None:
    """The paper's first claim: pretraining with occlusion improves on random initialization."""
    first, rows, column = results.baseline, judged_rows(results), results.column("finetune")
    if first is None or not rows or column is None:
        return None
    compared = [(row, difference(results, row, first, column)) for row in rows]
    known = [(row, found) for row, found in compared if found is not None]
    claim = f"Fine-tuned accuracy is above {first.name}"
    if not known:
        return Finding(claim, "not measured", [])
    p_values = {
        row.key: adjusted.get((row.key, first.key, "finetune", "above")) for row, _ in known
    }

    def clearly(sign: int) -> int:
        return sum(
            (p := p_values[row.key]) is not None and p < ALPHA and sign * found.value > 0
            for row, found in known
        )

    above, below = (sum(s * found.value > 0 for _, found in known) for s in (1, -1))
    verdict = _verdict(clearly(1), len(rows))
    if above and not clearly(1):
        verdict = "inconclusive"
    claim += f" in {above} of {len(known)} {rows_text(results)}, significantly in {clearly(1)}"
    if below and clearly(-1):
        claim += f" (significantly below in {clearly(-1)})"
    details = [sentence(row, first, column, found, p_values[row.key]) for row, found in known]
    details += _missing_rows(rows, [row for row, _ in known])
    if all(len(row.seed_values(column)) == 1 for row, _ in known):
        details.append(ONE_SEED)
    return Finding(claim, verdict, details)


def cka_finding(results: Results, encoder: str, adjusted: dict[Pair, float]) -> Finding | None:
    """The paper's second claim: occlusion changes the features less than a supervised model's.

    A row is counted if its CKA is above that of the supervised model, and above the floor: every
    untrained encoder of its shape. It supports the claim if the first difference is significant.
    """
    first, rows = results.baseline, judged_rows(results)
    if first is None or not rows or not results.cka_encoders:
        return None
    claim = (
        f"With {percent(QUOTED_RATIO)} of the patches dropped, the last-block CKA of the "
        f"{ENCODERS[encoder]} encoder is above untrained encoders and above {first.name} after "
        "fine-tuning"
    )
    reference = first.last_block_cka("finetuned")
    known = [(row, cka) for row in rows if (cka := row.last_block_cka(encoder)) is not None]
    if reference is None or not known:
        return Finding(claim, "not measured", [])
    details, above, clearly = [], 0, 0
    for row, cka in known:
        side = side_text(cka.value - reference.value, 3)
        text = f"{row.name}: {three_decimals(cka.value)} ({cka.token} token), "
        text += f"{side} {three_decimals(reference.value)}"
        is_above = side.endswith("above")
        if cka.floor is not None:
            beside = side_text(cka.value - cka.floor, 3)
            text += f", {beside} the floor of {three_decimals(cka.floor)}"
            is_above = is_above and beside.endswith("above")
        p_value = adjusted.get((row.key, first.key, encoder, "above"))
        if (both := cka_by_seed(results, row, encoder)) is not None and p_value is not None:
            wins = sum(ours > theirs for ours, theirs in zip(*both, strict=True))
            text += f"; above {first.name} in {wins} of {len(both[0])} seeds, "
            test = cka_test(results, row, encoder)
            assert test is not None
            text += f"{interval_text(test, 3)} over seeds, {p_text(p_value)}"
        details.append(text + ".")
        above += is_above
        clearly += is_above and p_value is not None and p_value < ALPHA
    details += _missing_rows(rows, [row for row, _ in known])
    curves = [row.cka[encoder] for row, _ in known]
    seeds = max(len(found.by_seed) for found in curves if found is not None)
    details.append(
        f"Each value is the mean over {seeds} seeds."
        if seeds > 1
        else "Each value is one measurement, so its noise is unknown."
    )
    claim += f" ({three_decimals(reference.value)}) in {above} of {len(known)} {rows_text(results)}"
    claim += f", significantly in {clearly}"
    verdict = _verdict(clearly, len(rows))
    return Finding(claim, "inconclusive" if above and not clearly else verdict, details)


def compared_pairs(results: Results) -> list[tuple[Row, Row, Column]]:
    """The pairs of a comparison without claims: every row with the first, in every % column."""
    rows = [row for row in results.rows if not row.is_floor]
    is_judged = results.claims or results.baseline is not None or results.layout == "batch"
    if is_judged or not results.same_data:
        return []
    columns = [column for column in results.columns if column.unit == "%"]
    return [
        (row, rows[0], column)
        for row in rows[1:]
        for column in columns
        if row.seed_values(column) and rows[0].seed_values(column)
    ]


def comparison_note(results: Results, adjusted: dict[Pair, float]) -> Finding | None:
    """The differences from the first row, where no claim of the paper is judged."""
    details = []
    for row, first, column in compared_pairs(results):
        found = difference(results, row, first, column)
        if found is not None:
            p_value = adjusted.get((row.key, first.key, column.key, "above"))
            details.append(f"{column.heading}: {sentence(row, first, column, found, p_value)}")
    if not details:
        return None
    first = results.rows[0]
    return Finding(f"Differences from {first.name}", "note", details)


def batch_findings(results: Results, adjusted: dict[Pair, float]) -> list[Finding]:
    """Up to which batch size each objective gains."""
    found = (verdict_of(results, curve, adjusted) for curve in curves(results))
    return [Finding(text, "note", details) for text, details in filter(None, found)]


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
            sentence += f", {side_text(psnr[row.key] - psnr[mae.key], 1, ' dB')} MAE"
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


def tests_note(results: Results, adjusted: dict[Pair, float]) -> Finding | None:
    """How the differences of the page are tested."""
    details = []
    if len(adjusted) > 1:
        text = f"p-values are adjusted for {len(adjusted)} comparisons on this page (Holm)."
        details.append(text)
    if any(
        noise_of(results, [*by_seed(row, column)], column)
        for row in results.rows
        for column in results.columns
    ):
        details.append(POOLED)
    return Finding("How differences are tested", "note", details) if details else None


def _verdict(supporting: int, total: int) -> Verdict:
    if supporting == total:
        return "supported"
    return "partly supported" if supporting else "not supported"


def _missing_rows(rows: list[Row], known: list[Row]) -> list[str]:
    absent = [row.name for row in rows if not any(row is other for other in known)]
    return [f"No number for {', '.join(absent)}."] if absent else []
