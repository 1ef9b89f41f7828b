"""The number of seeds that would show a difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from occinv.report.statistics import Noise, needed_seeds


@pytest.mark.parametrize(
    ("differences", "seeds", "more_seeds"),
    [
        # effect = differences.mean() / differences.std(ddof=1)
        # TTestPower().solve_power(effect, alpha=0.05, power=0.8), (effect, alpha=0.01, power=0.9)
        ([0.3, -0.1, 0.5], 15.485224113556926, 28.89754160248781),
        ([-2.0, -1.0, -3.0], 4.22071858501904, 7.191417872074641),
        ([0.02, -0.01, 0.03, 0.0], 28.14399305090307, 52.95690654224291),
    ],
)
def test_needed_seeds_agree_with_statsmodels(differences, seeds, more_seeds):
    assert needed_seeds(differences) == math.ceil(seeds)
    assert needed_seeds(differences, power=0.9, alpha=0.01) == math.ceil(more_seeds)


def test_needed_seeds_have_the_power():
    observed = np.array([0.02, -0.01, 0.03, 0.0])
    size = (20_000, needed_seeds(observed))
    draws = np.random.default_rng(0).normal(observed.mean(), observed.std(ddof=1), size)
    power = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert 0.79 < power < 0.83


def test_needed_seeds_have_the_noise_of_the_test():
    """Three differences that happen to be alike do not show that three seeds are enough."""
    alike, noise = [1.0, 1.1, 0.9], Noise(1.0, 8)  # the standard error of the mean of three
    assert needed_seeds(alike) < 5
    assert needed_seeds(alike, pooled=noise) == needed_seeds([1 - 3**0.5, 1.0, 1 + 3**0.5]) > 20
    wide = [1.0, 5.0, -3.0]
    assert needed_seeds(wide, pooled=noise) == needed_seeds(wide)


def test_needed_seeds_of_extreme_differences():
    assert needed_seeds([0.1, 0.1]) == 2
    assert needed_seeds([0.0, 0.0]) is None
    assert needed_seeds([0.1, -0.1]) is None
    assert 0.52 - 0.5 != 0.42 - 0.4
    assert needed_seeds([0.52 - 0.5, 0.4 - 0.42]) is None
    assert needed_seeds([0.1, 0.2, -0.3]) is None
    # A tiny effect needs the number of the normal approximation.
    normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * 2 / 1e-12
    assert needed_seeds([1e-6 - 1, 1e-6 + 1]) == pytest.approx(normal, rel=1e-6)


@pytest.mark.parametrize("differences", [[], [0.5], [0.5, math.nan]])
def test_errors_of_needed_seeds(differences):
    with pytest.raises(ValueError, match="Expected"):
        needed_seeds(differences)
