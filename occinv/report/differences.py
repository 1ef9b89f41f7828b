"""The difference between two rows of a table in one column, its test, and both in words."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from scipy.special import ndtr, ndtri

from occinv.data.identity import unpack
from occinv.report import statistics
from occinv.report.results import STAGES, Column, Results, Row, mean_and_std, percent
from occinv.report.statistics import ALPHA, Comparison, Noise

Relation = Literal["above", "equal"]


class Difference(NamedTuple):
    """The value of one row minus that of another.

    Attributes:
      value: In points (percent) or in the column's unit; 0 if it is printed as 0.0.
      comparison: The difference with its interval and p-value; None if the noise is unknown.
      evidence: The interval and the test in words.
      needed: How many seeds or images would show the difference if it were the only comparison, in
        words; empty if unknown, and for equality.
      means: The compared values of both rows.
    """

    value: float
    comparison: Comparison | None
    evidence: str
    needed: str
    means: tuple[float, ...] = ()


def difference(
    results: Results,
    row: Row,
    other: Row,
    column: Column,
    relation: Relation = "above",
    within: float = 0.0,
) -> Difference | None:
    """Compare two rows in one column, over the seeds that both have; None if one has no value.

    Several seeds are compared by Student's paired t test, with the noise of all rows if there are
    few, and one seed by McNemar's test of both models' predictions on the same images. Where the
    predictions were not recorded, accuracies of training are compared by their binomial errors,
    which ignore the pairing. `equal` tests equivalence at the margin `within` (TOST) instead of a
    difference.
    """
    ours, theirs = by_seed(row, column), by_seed(other, column)
    if not ours or not theirs:
        return None
    common = [seed for seed in ours if seed in theirs]
    if len(common) > 1:
        ours, theirs = ({seed: each[seed] for seed in common} for each in (ours, theirs))
    means = tuple(mean_and_std([*each.values()])[0] for each in (ours, theirs))
    gap = means[0] - means[1]
    # A difference that is printed as 0.0 counts as zero.
    value = 0.0 if f"{abs(gap):.1f}" == "0.0" else gap
    if len(common) > 1:
        noise = noise_of(results, common, column)
        values = [*ours.values()], [*theirs.values()]
        found = _over_seeds(*values, value, relation, within, noise)
    elif len(ours) == len(theirs) == 1:
        found = _over_images(results, row, other, column, value, relation, within)
    else:
        found = Difference(value, None, "the noise is unknown (different seeds)", "")
    return found._replace(means=means)


def by_seed(row: Row, column: Column) -> dict[int, float]:
    """The values of a row in the column's unit by seed; a table's seeds are 0, 1 and so on."""
    values = row.seed_values(column)
    return dict(zip(row.seeds.get(column.key) or range(len(values)), values, strict=True))


def noise_of(results: Results, seeds: list[int], column: Column) -> Noise | None:
    """The noise of a column over the rows with these seeds; None if there are many seeds."""
    rows = (by_seed(row, column) for row in results.rows)
    values = [[row[seed] for seed in seeds] for row in rows if set(seeds) <= set(row)]
    return statistics.pooled_noise(values) if len(values) > 2 else None


def _over_seeds(
    ours: list[float],
    theirs: list[float],
    value: float,
    relation: Relation,
    within: float,
    noise: Noise | None,
) -> Difference:
    """Compare the values of several seeds."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    wins = f"above it in {sum(gap > 0 for gap in gaps)} of {len(gaps)} seeds"
    test = statistics.paired_t(ours, theirs, pooled=noise)
    if len(gaps) == 2 and test.low == test.high:
        # Accuracies are multiples of 1 / n, so two equal differences are common.
        return Difference(value, None, f"{wins}; two equal differences have no interval", "")
    evidence = f"{wins}, {interval_text(test)} over seeds"
    if relation == "equal":
        test = statistics.equivalence_over_seeds(ours, theirs, within, pooled=noise)
        return Difference(value, test, evidence, "")
    count = statistics.needed_seeds(gaps, pooled=noise)
    return Difference(value, test, evidence, f"{count} seeds" if count else "")


def _over_images(
    results: Results,
    row: Row,
    other: Row,
    column: Column,
    value: float,
    relation: Relation,
    within: float,
) -> Difference:
    """Compare the values of one seed, by the images that were measured."""
    packed = row.hits.get(column.key), other.hits.get(column.key)
    if packed[0] and packed[1]:
        first, second = (unpack(hits[0]) for hits in packed if hits)
        test = in_points(statistics.mcnemar(first, second))
        evidence = f"{interval_text(test)} over {len(first)} images, McNemar's test"
        if relation == "equal":
            test = in_points(statistics.equivalence_over_images(first, second, within / 100))
            return Difference(value, test, evidence, "")
        number = statistics.needed_images(first, second)
        return Difference(value, test, evidence, f"{number} images" if number else "")
    count = results.settings.get("num_test")
    if column.key not in STAGES:
        return Difference(value, None, "the noise is unknown (one seed)", "")
    if not isinstance(count, int) or count < 1:
        reason = "the number of validation images is not recorded"
        return Difference(value, None, f"the noise is unknown ({reason})", "")
    test = unpaired(row.seed_values(column)[0], other.seed_values(column)[0], count)
    evidence = f"{interval_text(test)} over {count} validation images, predictions not recorded"
    if relation == "equal":
        error = (test.high - test.low) / 2 / float(ndtri(1 - ALPHA / 2))
        p_value = float(ndtr(-(within - abs(test.difference)) / error)) if error else 0.0
        test = test._replace(p_value=p_value)
    return Difference(value, test, evidence, "")


def unpaired(ours: float, theirs: float, count: int) -> Comparison:
    """Compare two accuracies in percent on `count` images by their binomial errors.

    Both models see the same images, so the interval is too wide rather than too narrow.
    """
    error = math.hypot(*(binomial_standard_error(v / 100, count) for v in (ours, theirs))) * 100
    half, gap = float(ndtri(1 - ALPHA / 2)) * error, ours - theirs
    p_value = 2 * float(ndtr(-abs(gap) / error)) if error else float(gap == 0)
    return Comparison(gap, gap - half, gap + half, p_value)


def binomial_standard_error(accuracy: float, num_test: int) -> float:
    """The standard error of a top-1 accuracy in [0, 1] on `num_test` images."""
    return math.sqrt(accuracy * (1 - accuracy) / num_test)


def sentence(row: Row, other: Row, column: Column, found: Difference, p_value: float | None) -> str:
    """Both values, their difference, the evidence, and what would decide an open question."""
    ours, theirs = found.means
    side = side_text(found.value, 1, f" {unit_text(column)}")
    text = f"{row.name}: {ours:.1f} {column.unit}, {side} {other.name} ({theirs:.1f} {column.unit})"
    text += f"; {found.evidence}"
    if p_value is not None:
        text += f", {p_text(p_value)}"
        if p_value >= ALPHA:
            text += ": not significant"
            if found.needed:
                text += ". Without the adjustment, a true difference of this size would need about "
                text += found.needed
    return text + "."


def in_points(test: Comparison) -> Comparison:
    """Convert differences of accuracies in [-1, 1] to points."""
    value, low, high = (100 * bound for bound in test[:3])
    return Comparison(value, low, high, test.p_value)


def interval_text(test: Comparison, decimals: int = 1) -> str:
    """The confidence interval in words, with signs."""
    low, high = (f"{bound:+.{decimals}f}".replace("-", "−") for bound in test[1:3])
    return f"{percent(1 - ALPHA)} confidence interval {low} to {high}"


def p_text(p_value: float) -> str:
    """A p-value of `adjusted_p_values` in words."""
    return "Holm-adjusted p " + ("< 0.001" if p_value < 0.001 else f"= {p_value:.3f}")


def unit_text(column: Column) -> str:
    """The unit of a difference: points for accuracies."""
    return "points" if column.unit == "%" else column.unit


def side_text(gap: float, decimals: int, unit: str = "") -> str:
    """`1.3 points above`, `1.3 points below`, or `equal to` if the gap is printed as zero."""
    size = f"{abs(gap):.{decimals}f}"
    if float(size) == 0:
        return "equal to"
    return f"{size}{unit} {'above' if gap > 0 else 'below'}"
