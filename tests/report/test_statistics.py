"""Paired tests and sample sizes agree with SciPy, statsmodels, R and simulations.

The literals of statsmodels are from version 0.15.0, which is not a dependency.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from occinv.report.statistics import (
    PairedCounts,
    equivalence_over_images,
    equivalence_over_seeds,
    holm,
    mcnemar,
    needed_images,
    paired_counts,
    paired_t,
    pooled_noise,
)

# (both, only_first, only_second, neither): accuracies are related positively, hardly, negatively.
TABLES = [
    (59, 6, 16, 80),
    (7000, 420, 350, 2230),
    (10, 6, 8, 6),
    (10, 15, 5, 20),
    (3, 20, 25, 2),
    (14, 5, 0, 22),
    (0, 9, 0, 0),
    (0, 4, 7, 0),
]
SEEDS = ([81.2, 80.7, 82.0, 81.5, 80.9], [81.0, 80.9, 81.4, 81.6, 80.5])


def images(*table: int) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays of a table, with the images in random order."""
    first = np.repeat([True, True, False, False], table)
    second = np.repeat([True, False, True, False], table)
    order = np.random.default_rng(0).permutation(len(first))
    return first[order], second[order]


def newcombe(both: int, only_first: int, only_second: int, neither: int, level: float):
    """Method 10 of Newcombe (1998) with SciPy's Wilson intervals, as its Section 3 writes it."""
    e, f, g, h = both, only_first, only_second, neither
    n = e + f + g + h
    a, b = (e + f) / n, (e + g) / n
    wilson = [stats.binomtest(k, n).proportion_ci(level, "wilson") for k in (e + f, e + g)]
    dl2, du2 = a - wilson[0].low, wilson[0].high - a
    dl3, du3 = b - wilson[1].low, wilson[1].high - b
    product = (e + f) * (g + h) * (e + g) * (f + h)
    determinant = e * h - f * g
    if determinant > n / 2:
        determinant -= n / 2
    elif determinant >= 0:
        determinant = 0
    phi = determinant / math.sqrt(product) if product else 0
    delta = math.sqrt(dl2**2 - 2 * phi * dl2 * du3 + du3**2)
    epsilon = math.sqrt(du2**2 - 2 * phi * du2 * dl3 + dl3**2)
    return a - b - delta, a - b + epsilon


@pytest.mark.parametrize("table", [*TABLES, (1, 0, 0, 0), (0, 1, 0, 0), (12, 0, 0, 3)])
def test_images_are_counted(table):
    counts = paired_counts(*images(*table))
    assert counts == PairedCounts(*table)
    assert counts.total == sum(table)
    assert counts.discordant == table[1] + table[2]
    assert counts.difference == (table[1] - table[2]) / sum(table)


@pytest.mark.parametrize("table", TABLES)
def test_mcnemar_is_a_two_sided_binomial_test_of_the_discordant_images(table):
    first, second = images(*table)
    found = mcnemar(first, second)
    _, only_first, only_second, _ = table
    expected = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert found.difference == pytest.approx(first.mean() - second.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("table", "p_value"),
    [
        # statsmodels.stats.contingency_tables.mcnemar([[59, 6], [16, 80]], exact=True).pvalue
        (TABLES[0], 0.052478790283203125),
        (TABLES[1], 0.012846877889506513),
        (TABLES[3], 0.04138946533203125),
        (TABLES[6], 0.00390625),
    ],
)
def test_mcnemar_agrees_with_statsmodels(table, p_value):
    assert mcnemar(*images(*table)).p_value == pytest.approx(p_value, rel=1e-9)


@pytest.mark.parametrize("table", [*TABLES, (1, 0, 0, 0), (0, 1, 0, 0), (12, 0, 0, 3)])
@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_interval_of_mcnemar_is_method_10_of_newcombe(table, alpha):
    found = mcnemar(*images(*table), alpha)
    assert (found.low, found.high) == pytest.approx(newcombe(*table, 1 - alpha), abs=1e-12)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    swapped = mcnemar(*reversed(images(*table)), alpha)
    assert (-swapped.high, -swapped.low) == pytest.approx((found.low, found.high), abs=1e-12)


def test_interval_of_mcnemar_agrees_with_r():
    # contingencytables::Newcombe_square_and_add_CI_paired_2x2(cavo_2012):
    # estimate = -0.0621 (95% CI -0.1186 to -0.0046). Without the continuity correction of phi, the
    # interval is -0.1174 to -0.0059.
    found = mcnemar(*images(59, 6, 16, 80))
    assert tuple(round(value, 4) for value in found[:3]) == (-0.0621, -0.1186, -0.0046)


@pytest.mark.parametrize("n", [1, 50, 10_000])
def test_mcnemar_without_discordant_images(n):
    found = mcnemar(np.ones(n, bool), np.ones(n, bool))
    width = stats.norm.ppf(0.975) ** 2 / (n + stats.norm.ppf(0.975) ** 2)
    assert found == pytest.approx((0, -width, width, 1), abs=1e-12)


def test_mcnemar_of_equally_many_discordant_images_has_a_p_value_of_one():
    assert mcnemar(*images(20, 7, 7, 20)).p_value == 1


def test_interval_of_mcnemar_covers_the_true_difference():
    # phi is 0.66. With phi = 0, the coverage would be above 0.99.
    draws = np.random.default_rng(0).multinomial(200, [0.75, 0.08, 0.03, 0.14], size=2000)
    found = [mcnemar(*images(*draw)) for draw in draws]
    coverage = np.mean([one.low <= 0.05 <= one.high for one in found])
    assert 0.935 < coverage < 0.965


@pytest.mark.parametrize("alpha", [0.05, 0.1])
@pytest.mark.parametrize("seeds", [5, 2])
def test_paired_t_agrees_with_scipy(seeds, alpha):
    first, second = (np.array(values[:seeds]) for values in SEEDS)
    found = paired_t(first, second, alpha)
    expected = stats.ttest_rel(first, second)
    interval = expected.confidence_interval(1 - alpha)
    values = ((first - second).mean(), interval.low, interval.high, expected.pvalue)
    assert found == pytest.approx(values, rel=1e-9, abs=1e-9)


def test_paired_t_agrees_with_statsmodels():
    # difference = DescrStatsW(first - second)
    # difference.tconfint_mean(), difference.ttest_mean(0)[1]
    expected = (0.18, -0.23554025347342447, 0.5955402534734268, 0.2954224430557509)
    assert paired_t(*SEEDS) == pytest.approx(expected, rel=1e-9)


def test_pooled_noise_is_that_of_a_regression_on_models_and_seeds():
    models, seeds = 4, 3
    noise = np.random.default_rng(0).normal(0, 2, (models, seeds))
    values = noise + np.array([80, 85, 81, 89])[:, None]
    model, seed = (index.ravel() for index in np.indices((models, seeds)))
    design = np.column_stack([np.eye(models)[model], np.eye(seeds)[seed][:, 1:]])
    weights, (squares,), rank, _ = np.linalg.lstsq(design, values.ravel())
    freedom = values.size - rank
    contrast = np.zeros(design.shape[1])
    contrast[:2] = 1, -1
    spread = contrast @ np.linalg.inv(design.T @ design) @ contrast
    noise = pooled_noise(values)
    assert noise == (pytest.approx(math.sqrt(squares / freedom * spread)), freedom)
    found = paired_t(values[0], values[1], pooled=noise)
    assert found.difference == pytest.approx(contrast @ weights)
    expected = 2 * stats.t.sf(abs(found.difference) / noise.error, freedom)
    assert found.p_value == pytest.approx(expected)
    half = stats.t.ppf(0.975, freedom) * noise.error
    assert found[1:3] == pytest.approx((found.difference - half, found.difference + half))


def test_pooled_noise_of_two_models_is_that_of_paired_t():
    first, second = (values[:3] for values in SEEDS)
    noise = pooled_noise([first, second])
    assert paired_t(first, second, pooled=noise) == pytest.approx(paired_t(first, second))


def test_pooled_noise_is_only_for_few_seeds():
    assert pooled_noise([[1.0], [2.0], [3.0]]) is None
    assert pooled_noise(np.zeros((3, 4))) == (0, 6)
    assert pooled_noise(np.zeros((3, 5))) is None


def test_a_pair_with_more_noise_than_the_others_keeps_its_own():
    noisy, calm = [80.0, 90.0, 85.0], [70.0, 70.2, 70.1]
    noise = pooled_noise([noisy, calm, *(np.add(calm, i) for i in range(9))])
    own, pooled = paired_t(noisy, calm), paired_t(noisy, calm, pooled=noise)
    factor = stats.t.ppf(0.975, 2) / stats.t.ppf(0.975, noise.freedom)
    assert own.high - own.low == pytest.approx(factor * (pooled.high - pooled.low))


@pytest.mark.parametrize("deviation", [1.0, 2.0])
def test_pooled_noise_finds_more_and_invents_little(deviation):
    """Six models and three seeds, all equal but for the last; the first has another noise."""
    draw = np.random.default_rng(1)
    values = draw.normal(0, 1, (2000, 6, 3)) * np.array([deviation, 1, 1, 1, 1, 1])[:, None]
    values[:, 5] += 5

    def found(first, second):
        tests = (paired_t(x[first], x[second], pooled=pooled_noise(x)) for x in values)
        return np.mean([test.p_value < 0.01 for test in tests])

    assert found(0, 1) < (0.012 if deviation == 1 else 0.03)
    own = np.mean([paired_t(x[5], x[4]).p_value < 0.01 for x in values])
    assert found(5, 4) > 0.8 > 2 * own


def test_equivalence_uses_the_pooled_noise():
    first, second = [80.0, 80.1, 80.2], [80.0, 80.2, 80.1]
    noise = pooled_noise([first, second, [70.0, 71.0, 69.0], [60.0, 62.0, 59.0]])
    own = equivalence_over_seeds(first, second, 1.0)
    pooled = equivalence_over_seeds(first, second, 1.0, pooled=noise)
    assert pooled.p_value == pytest.approx(stats.t.sf(1 / noise.error, noise.freedom))
    assert pooled.p_value > own.p_value


def test_paired_t_without_variance():
    assert paired_t([0.5, 0.75, 1.0], [0.25, 0.5, 0.75]) == (0.25, 0.25, 0.25, 0)
    assert paired_t([0.25, 0.5], [0.5, 0.75]) == (-0.25, -0.25, -0.25, 0)
    assert paired_t([0.25, 0.5], [0.25, 0.5]) == (0, 0, 0, 1)


def test_rounding_errors_are_no_differences():
    assert 0.1 + 0.2 != 0.3
    assert paired_t([0.1 + 0.2, 0.7], [0.3, 0.7]) == (0, 0, 0, 1)
    assert 0.52 - 0.5 != 0.42 - 0.4
    assert paired_t([0.52, 0.42], [0.5, 0.4]) == (0.02, 0.02, 0.02, 0)
    assert -0.1 - 0.2 + 0.3 < 0
    difference = paired_t([-0.1, -0.2, 0.3], [0.0, 0.0, 0.0]).difference
    assert str(difference) == "0.0"


@pytest.mark.parametrize(
    ("margin", "p_value"),
    # statsmodels.stats.weightstats.ttost_paired(first, second, -margin, margin)[0]
    [(1, 0.002701339715037975), (0.3, 0.2338023773047)],
)
def test_equivalence_over_seeds_agrees_with_statsmodels_and_scipy(margin, p_value):
    found = equivalence_over_seeds(*SEEDS, margin)
    # DescrStatsW(first - second).tconfint_mean(alpha=0.1)
    expected = (0.18, -0.13906561102117362, 0.49906561102117586, p_value)
    assert found == pytest.approx(expected, rel=1e-9)
    differences = np.subtract(*SEEDS)
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    assert found.p_value == pytest.approx(max(above, below), rel=1e-9)


@pytest.mark.parametrize(
    ("margin", "p_value"),
    # statsmodels.stats.weightstats.DescrStatsW(first - second).ztost_mean(-margin, margin)[0]
    [(0.01, 0.1397562674341586), (0.015, 0.001964706719534999)],
)
def test_equivalence_over_images_agrees_with_statsmodels(margin, p_value):
    # DescrStatsW(first - second).zconfint_mean(alpha=0.1)
    expected = (0.007, 0.0024369407647316984, 0.011563059235268302, p_value)
    for first, second in [(420, 350), (350, 420)]:
        found = equivalence_over_images(*images(7000, first, second, 2230), margin)
        if first < second:
            found = found._replace(difference=-found[0], low=-found[2], high=-found[1])
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_equivalence_is_that_the_interval_lies_within_the_margin(alpha):
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(200):
        margin = rng.uniform(0.001, 0.3)
        share = rng.uniform(0, 0.3) * rng.integers(0, 2)  # without discordant images if 0
        table = rng.multinomial(100, [0.6, 0.3 * share, 0.7 * share, 0.4 - share])
        over_images = equivalence_over_images(*images(*table), margin, alpha)
        pair = rng.normal(0.5, 0.05, (2, rng.integers(2, 6)))
        for found in (over_images, equivalence_over_seeds(*pair, margin, alpha)):
            is_within = -margin < found.low and found.high < margin
            assert (found.p_value < alpha) == is_within
            verdicts.append(is_within)
    assert 0.2 < np.mean(verdicts) < 0.8


def test_equivalence_over_seeds_without_variance():
    first, second = [0.5, 0.75], [0.25, 0.5]
    assert equivalence_over_seeds(first, second, 0.3) == (0.25, 0.25, 0.25, 0)
    assert equivalence_over_seeds(first, second, 0.2).p_value == 1
    assert equivalence_over_seeds(second, first, 0.2).p_value == 1
    assert equivalence_over_seeds(first, second, 0.25).p_value == 0.5


@pytest.mark.parametrize(("n", "is_equivalent"), [(1, False), (298, False), (299, True)])
def test_equivalence_over_images_without_discordant_images(n, is_equivalent):
    # Two models that differ on 1 % of the images agree on 298 images with probability 0.0500.
    found = equivalence_over_images(np.ones(n, bool), np.ones(n, bool), 0.01)
    assert (found.p_value < 0.05) == is_equivalent
    assert found.p_value == pytest.approx(stats.binom.pmf(0, n, 0.01))
    assert found.difference == 0
    assert stats.binom.pmf(0, n, found.high) == pytest.approx(0.05)
    assert found.low == -found.high


@pytest.mark.parametrize("n", [1, 10])
def test_models_that_never_agree_are_not_equivalent(n):
    found = equivalence_over_images(np.ones(n, bool), np.zeros(n, bool), 0.5)
    assert found == (1, 1, 1, 1)


def test_holm_agrees_with_statsmodels():
    # statsmodels.stats.multitest.multipletests(p_values, method="holm")[1]
    adjusted = holm([0.04, 0.001, 0.03, 0.03, 0.5, 0.011])
    assert adjusted == pytest.approx([0.12, 0.006, 0.12, 0.12, 0.5, 0.055], rel=1e-9)


def test_holm_keeps_one_p_value_and_is_at_most_one():
    assert holm([0.04]).tolist() == [0.04]
    assert holm([0.9, 0.6, 0.7]).tolist() == [1, 1, 1]
    assert holm([]).tolist() == []


@pytest.mark.parametrize("p_values", [[0.1, None], [0.1, math.nan], [0.1, 1.2], [-0.1], 0.1])
def test_holm_names_invalid_p_values(p_values):
    with pytest.raises(ValueError, match=r"p_values is .*(None|nan|1\.2|-0\.1|0\.1)"):
        holm(p_values)


def test_needed_images_agree_with_a_published_example():
    # Chow, Shao and Wang (2003, "Sample Size Calculations in Clinical Research", Example 6.4.3);
    # in R, TrialSize::McNemar.Test(0.05, 0.2, 0.2 / 0.5, 0.7). The shares are 0.5 and 0.2.
    assert needed_images(*images(15, 25, 10, 0)) == 59
    assert needed_images(*images(15, 10, 25, 0)) == 59


@pytest.mark.parametrize("table", [(700, 60, 40, 200), (60, 20, 10, 10), (40, 9, 1, 50)])
def test_needed_images_have_the_power(table):
    n = needed_images(*images(*table))
    draws = np.random.default_rng(0).multinomial(n, np.array(table) / sum(table), size=20_000)
    first, second = draws[:, 1], draws[:, 2]
    p_values = 2 * stats.binom.cdf(np.minimum(first, second), first + second, 0.5)
    assert 0.76 < np.mean(p_values < 0.05) < 0.82


def test_needed_images_depend_on_power_and_alpha():
    table = images(700, 60, 40, 200)
    assert needed_images(*table) == 1960
    z = stats.norm.ppf(0.995) * math.sqrt(0.1) + stats.norm.ppf(0.9) * math.sqrt(0.1 - 0.02**2)
    assert needed_images(*table, power=0.9, alpha=0.01) == math.ceil((z / 0.02) ** 2)


def test_no_number_of_images_shows_no_difference():
    assert needed_images(*images(10, 3, 3, 10)) is None
    assert needed_images([True], [True]) is None


OVER_IMAGES = [
    mcnemar,
    paired_counts,
    needed_images,
    lambda first, second: equivalence_over_images(first, second, 0.01),
]
OVER_SEEDS = [
    paired_t,
    lambda first, second: equivalence_over_seeds(first, second, 0.01),
]


@pytest.mark.parametrize("function", OVER_IMAGES)
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([True, False, True], [True, False], r"shape \(3,\) and second \(2,\).*per test image"),
        ([[True]], [[True]], r"shape \(1, 1\).*per test image"),
        ([], [], "are empty. Expected at least 1 test image"),
        ([1.0, 0.0], [True, False], "dtype float64 and second bool. Expected bool"),
        ([True, False], [1, 0], "dtype bool and second int64. Expected bool"),
    ],
)
def test_errors_over_images(function, first, second, message):
    with pytest.raises(ValueError, match=message):
        function(first, second)


@pytest.mark.parametrize("function", OVER_SEEDS)
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([0.5, 0.6, 0.7], [0.5, 0.6], r"shape \(3,\) and second \(2,\).*per seed"),
        ([0.5], [0.25], r"\[0.5\] and \[0.25\]. Expected at least 2 seeds"),
        ([], [], "Expected at least 2 seeds"),
        ([0.5, math.nan], [0.5, 0.6], "nan.*Expected finite"),
        ([0.5, math.inf], [0.5, 0.6], "inf.*Expected finite"),
    ],
)
def test_errors_over_seeds(function, first, second, message):
    with pytest.raises(ValueError, match=message):
        function(first, second)


@pytest.mark.parametrize("margin", [0, -0.1, math.nan])
def test_a_margin_is_positive(margin):
    with pytest.raises(ValueError, match=f"margin is {margin}. Expected"):
        equivalence_over_seeds([0.5, 0.6], [0.5, 0.6], margin)
    with pytest.raises(ValueError, match=f"margin is {margin}. Expected"):
        equivalence_over_images([True], [True], margin)


def test_a_margin_of_accuracies_is_not_in_points():
    with pytest.raises(ValueError, match=r"margin is 1.0. Expected .* in \(0, 1\)"):
        equivalence_over_images([True], [True], 1.0)
