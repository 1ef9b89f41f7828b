"""Paired tests, equivalence tests and sample sizes for the difference between two models.

Both models are measured on the same test images and with the same seeds, so every test is paired.
A test over images compares one training of each model: it covers the choice of test images, not the
variation between trainings. A test over seeds covers both. With few seeds, two models alone say too
little about their noise, and `pooled_noise` estimates it from all models of a table.

`alpha` is the significance level of one test. `holm` corrects p-values for the number of tests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, nctdtr, ndtr, ndtri, stdtr, stdtrit

from occinv.report.results import mean_and_std

ALPHA = 0.05
POWER = 0.8  # the customary probability of finding a true difference (Cohen, 1988)
MANY_SEEDS = 5  # with fewer, the noise is pooled over the rows of a table
DECIMALS = 12  # a difference over seeds that is smaller is a rounding error


class Comparison(NamedTuple):
    """The value of the first model minus that of the second, in the unit of the values.

    Attributes:
      difference: The observed difference, or the mean of the differences over seeds.
      low, high: The confidence interval of the difference.
      p_value: The p-value of the test.
    """

    difference: float
    low: float
    high: float
    p_value: float


class Noise(NamedTuple):
    """The noise of a difference between the means of two models over seeds.

    Attributes:
      error: The standard error of the difference, in the unit of the values.
      freedom: Its degrees of freedom.
    """

    error: float
    freedom: int


class PairedCounts(NamedTuple):
    """The number of test images that both, one or neither of two models classify correctly."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def total(self) -> int:
        """The number of test images."""
        return sum(self)

    @property
    def discordant(self) -> int:
        """The number of test images that exactly one model classifies correctly."""
        return self.only_first + self.only_second

    @property
    def difference(self) -> float:
        """The accuracy of the first model minus that of the second, in [-1, 1]."""
        return (self.only_first - self.only_second) / self.total


def paired_counts(first: npt.ArrayLike, second: npt.ArrayLike) -> PairedCounts:
    """Count the test images by which of two models classifies them correctly.

    Args:
      first, second: [n] bool, whether each test image is classified correctly, in the same order.

    Raises:
      ValueError: The arrays are empty, not bool, or of different shapes.
    """
    a, b = _same_length(first, second, "test image")
    if not len(a):
        raise ValueError("first and second are empty. Expected at least 1 test image.")
    if not a.dtype == b.dtype == np.bool_:
        raise ValueError(
            f"first has dtype {a.dtype} and second {b.dtype}. Expected bool: whether each test "
            "image is classified correctly."
        )
    both, right, other_right = (int(np.count_nonzero(one)) for one in (a & b, a, b))
    return PairedCounts(both, right - both, other_right - both, len(a) + both - right - other_right)


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike, alpha: float = ALPHA) -> Comparison:
    """Compare two accuracies on the same test images by McNemar's exact test.

    The interval is method 10 of Newcombe (1998, "Improved confidence intervals for the difference
    between binomial proportions based on paired data"). It stays within [-1, 1], and it keeps a
    width without discordant images, where the Wald interval is a point. It does not invert the
    test: where p is close to alpha, one can include no difference and the other exclude it.

    Args:
      first, second: [n] bool, as in `paired_counts`.
      alpha: The interval has the confidence 1 - alpha.

    Returns:
      The difference in [-1, 1], and the two-sided binomial p-value of no difference.
    """
    counts = paired_counts(first, second)
    p_value = 2 * float(bdtr(min(counts.only_first, counts.only_second), counts.discordant, 0.5))
    low, high = _newcombe(counts, alpha)
    return Comparison(counts.difference, low, high, min(1.0, p_value))


def pooled_noise(values: npt.ArrayLike) -> Noise | None:
    """Estimate the noise of differences from all models of a table: a randomized block design.

    A model and a seed each shift a value; what remains is noise, of the same size for every model.
    With two models, it is the noise of `paired_t`.

    Args:
      values: [models, k] floats, one column per seed; models >= 2.

    Returns:
      The noise; None for one seed, and for `MANY_SEEDS` or more, where it is not needed.
    """
    x = np.asarray(values, dtype=np.float64)
    models, seeds = x.shape
    if not 2 <= seeds < MANY_SEEDS:
        return None
    remains = x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()
    freedom = (models - 1) * (seeds - 1)
    return Noise(math.sqrt(2 * float((remains**2).sum()) / freedom / seeds), freedom)


def paired_t(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    alpha: float = ALPHA,
    pooled: Noise | None = None,
) -> Comparison:
    """Compare two models over seeds by Student's paired t test.

    If all differences are equal, the interval is a point, and p is 0, or 1 for a difference of 0.

    Args:
      first, second: [k] floats in any unit, one value per seed, in the same order; k >= 2.
      alpha: The interval has the confidence 1 - alpha.
      pooled: The noise of all models. The larger of it and that of these two counts, so that a
        noisy pair is not called certain, with the degrees of freedom of `pooled`.

    Returns:
      The mean difference, and the two-sided p-value of no difference.

    Raises:
      ValueError: There are fewer than two seeds, different numbers of them, or NaN.
    """
    mean, error, freedom = _mean_over_seeds(first, second, pooled)
    half = float(stdtrit(freedom, 1 - alpha / 2)) * error
    p_value = 2 * float(stdtr(freedom, -_ratio(abs(mean), error)))
    return Comparison(mean, mean - half, mean + half, p_value)


def equivalence_over_seeds(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    margin: float,
    alpha: float = ALPHA,
    pooled: Noise | None = None,
) -> Comparison:
    """Test over seeds whether two models differ by less than `margin`: two one-sided t tests.

    TOST of Schuirmann (1987): p < alpha if and only if the interval is within ±margin.

    Args:
      first, second, pooled: As in `paired_t`.
      margin: The difference that no longer counts as equal, in the unit of the values.
      alpha: The interval has the confidence 1 - 2 alpha.

    Returns:
      The mean difference, and the p-value of a difference of `margin` or more.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}. Expected a positive number.")
    mean, error, freedom = _mean_over_seeds(first, second, pooled)
    half = float(stdtrit(freedom, 1 - alpha)) * error
    p_value = float(stdtr(freedom, -_ratio(margin - abs(mean), error)))
    return Comparison(mean, mean - half, mean + half, p_value)


def equivalence_over_images(
    first: npt.ArrayLike, second: npt.ArrayLike, margin: float, alpha: float = ALPHA
) -> Comparison:
    """Test on the same test images whether two accuracies differ by less than `margin`.

    TOST as in `equivalence_over_seeds`, with the normal approximation for the mean of the
    differences in {-1, 0, 1}. The approximation needs margin * n of about 10 or more. Without
    discordant images, the sample variance is 0, so the test is exact: models that differ by
    `margin` agree on all n images with a probability of at most (1 - margin)^n.

    Args:
      first, second: [n] bool, as in `paired_counts`.
      margin: The difference that no longer counts as equal, in (0, 1).
      alpha: The interval has the confidence 1 - 2 alpha.

    Returns:
      The difference in [-1, 1], and the p-value of a difference of `margin` or more.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin is {margin}. Expected a difference of accuracies in (0, 1).")
    counts = paired_counts(first, second)
    n, difference = counts.total, counts.difference
    if not counts.discordant:
        half = 1 - alpha ** (1 / n)
        return Comparison(0.0, -half, half, (1 - margin) ** n)
    squares = n * counts.discordant - (counts.only_first - counts.only_second) ** 2
    error = math.sqrt(squares / max(n - 1, 1)) / n  # the sample standard deviation / sqrt(n)
    half = float(ndtri(1 - alpha)) * error
    p_value = float(ndtr(-_ratio(margin - abs(difference), error)))
    return Comparison(difference, difference - half, difference + half, p_value)


def holm(p_values: npt.ArrayLike) -> np.ndarray:
    """Adjust p-values for the number of tests by the step-down method of Holm (1979).

    The probability of any adjusted p-value below alpha without a true difference is at most alpha,
    also if the tests depend on each other.

    Args:
      p_values: [m] floats in [0, 1].

    Returns:
      [m] adjusted p-values in the given order.

    Raises:
      ValueError: A p-value is None, NaN, or outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p_values is {p_values!r}. Expected a list of numbers in [0, 1].")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)


def needed_seeds(
    differences: npt.ArrayLike,
    power: float = POWER,
    alpha: float = ALPHA,
    pooled: Noise | None = None,
) -> int | None:
    """Return the number of seeds at which `paired_t` finds the observed mean difference.

    It is a rough guide, because it takes the observed mean and standard deviation for the true
    ones. The power is that of the noncentral t distribution, without rejections of the wrong sign.

    Args:
      differences: [k] floats, the differences seed by seed; k >= 2.
      power: The probability of a p-value below `alpha`, not adjusted for other comparisons.
      pooled: As in `paired_t`: the larger noise counts.

    Returns:
      The smallest number of seeds; None if the mean difference is 0.
    """
    seeds = np.size(differences)
    mean, error, _ = _mean_over_seeds(differences, np.zeros(seeds), pooled)
    effect = _ratio(abs(mean), error * math.sqrt(seeds))
    if effect in (0, math.inf):
        return 2 if effect else None

    def is_enough(seeds: int) -> bool:
        critical = stdtrit(seeds - 1, 1 - alpha / 2)
        return bool(1 - nctdtr(seeds - 1, effect * math.sqrt(seeds), critical) >= power)

    too_few, enough = 1, 2
    while not is_enough(enough):
        too_few, enough = enough, 2 * enough
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if is_enough(middle) else (middle, enough)
    return enough


def needed_images(
    first: npt.ArrayLike, second: npt.ArrayLike, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Return the number of test images at which `mcnemar` finds the observed difference.

    It is a rough guide, because it takes the observed shares of discordant images for the true
    ones. The formula of Connor (1987, "Sample size for testing differences in proportions for the
    paired-sample design") is asymptotic; the exact test has a power about 0.02 lower.

    Args:
      first, second: [n] bool, as in `paired_counts`.
      power: The probability of a p-value below `alpha`.

    Returns:
      The total number of test images; None if the observed difference is 0.
    """
    counts = paired_counts(first, second)
    share, difference = counts.discordant / counts.total, counts.difference
    if not difference:
        return None
    width = float(ndtri(1 - alpha / 2)) * math.sqrt(share)
    width += float(ndtri(power)) * math.sqrt(share - difference**2)
    return math.ceil((width / difference) ** 2)


def _newcombe(counts: PairedCounts, alpha: float) -> tuple[float, float]:
    """Join the Wilson intervals of both accuracies by their correlation phi."""
    n = counts.total
    right, other_right = counts.both + counts.only_first, counts.both + counts.only_second
    p, q = right / n, other_right / n
    (p_low, p_high), (q_low, q_high) = _wilson(p, n, alpha), _wilson(q, n, alpha)
    cross = float(counts.both * counts.neither - counts.only_first * counts.only_second)
    if cross > 0:
        cross = max(cross - n / 2, 0.0)  # the continuity correction of method 10
    scale = math.sqrt(right * (n - right) * other_right * (n - other_right))
    phi = cross / scale if scale else 0.0

    def join(x: float, y: float) -> float:
        return math.sqrt(x**2 - 2 * phi * x * y + y**2)

    low = p - q - join(p - p_low, q_high - q)
    return low, p - q + join(p_high - p, q - q_low)


def _wilson(share: float, n: int, alpha: float) -> tuple[float, float]:
    """The score interval of a proportion (Wilson, 1927)."""
    z = float(ndtri(1 - alpha / 2))
    center = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (center - half) / (1 + z**2 / n), (center + half) / (1 + z**2 / n)


def _mean_over_seeds(
    first: npt.ArrayLike, second: npt.ArrayLike, pooled: Noise | None = None
) -> tuple[float, float, int]:
    """The mean difference, its standard error, and the degrees of freedom."""
    a, b = _same_length(first, second, "seed")
    if len(a) < 2:
        raise ValueError(f"The values are {a} and {b}. Expected at least 2 seeds.")
    differences = np.round(np.subtract(a, b, dtype=np.float64), DECIMALS)
    if not np.all(np.isfinite(differences)):
        raise ValueError(f"The differences over seeds are {differences}. Expected finite numbers.")
    mean, deviation = mean_and_std(differences.tolist())
    mean = round(mean, DECIMALS) + 0.0  # never -0.0
    error, freedom = (deviation or 0.0) / math.sqrt(len(a)), len(a) - 1
    if pooled is not None:
        error, freedom = max(error, pooled.error), pooled.freedom
    return mean, error, freedom


def _ratio(value: float, error: float) -> float:
    """The test statistic value / error. Without an error, it is infinite, or 0 for a value of 0."""
    if error:
        return value / error
    return math.copysign(math.inf, value) if value else 0.0


def _same_length(
    first: npt.ArrayLike, second: npt.ArrayLike, unit: str
) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"first has shape {a.shape} and second {b.shape}. Expected one value per {unit}."
        )
    return a, b
