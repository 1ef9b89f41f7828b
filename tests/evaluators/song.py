"""HSIC₁ in float64."""

from __future__ import annotations

import numpy as np


def song(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """HSIC₁ of two Gram matrices by the three terms of Song et al., Eq. 5."""
    n = len(k)
    k, l = (np.array(x, np.float64) for x in (k, l))  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)
    one = np.ones(n)
    totals = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    cross = 2 / (n - 2) * (one @ k @ l @ one)
    return float((np.trace(k @ l) + totals - cross) / (n * (n - 3)))


def linear_gram(x: np.ndarray) -> np.ndarray:
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    return flat @ flat.T
