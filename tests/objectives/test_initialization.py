"""The initial deviations of heads and mask tokens are those of each method's official code."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest
from small_objectives import make

from occinv.objectives import forward

# Of a normal that is cut at one deviation: 1 - 2 φ(1) / (2 Φ(1) - 1) is its variance.
CUT_AT_ONE = math.sqrt(1 - math.sqrt(2 / math.pi) * math.exp(-0.5) / math.erf(1 / math.sqrt(2)))
KMEANS = {"name": "kmeans", "num_ids": 400}
HEAD = {"num_prototypes": 8, "head_hidden": 64, "bottleneck": 64, "local_crops": 0}


def drawn(name: str, path: str, **fields: Any) -> np.ndarray:
    """Return the initial values of a parameter of a small objective, flat."""
    objective = make(name, **fields)
    params, _ = jax.device_get(forward.init(objective, jax.random.key(0)))
    for key in path.split("/"):
        params = params[key]
    return np.ravel(params)


def check(values: np.ndarray, deviation: float, largest: float) -> None:
    """Check the deviation within four of its errors, and that no value is above `largest`."""
    error = 4 / math.sqrt(2 * len(values))
    assert values.std() == pytest.approx(deviation, rel=error)
    assert np.abs(values).max() <= largest


@pytest.mark.parametrize(
    ("name", "path", "fields"),
    [
        ("beit", "head/kernel", {"tokenizer": KMEANS}),
        ("beit", "encoder/mask_token", {"tokenizer": KMEANS}),
        ("simmim", "encoder/mask_token", {}),
        ("data2vec", "predictor/kernel", {"average_top_k": 1}),
        ("data2vec", "encoder/mask_token", {"average_top_k": 1}),
        (
            "cae",
            "regressor/mask_token",
            {"tokenizer": KMEANS, "regressor_depth": 1, "decoder_depth": 1},
        ),
    ],
)
def test_beits_normal_is_cut_at_one_deviation(name: str, path: str, fields: Any) -> None:
    assert pytest.approx(0.54, abs=0.001) == CUT_AT_ONE
    check(drawn(name, path, **fields), 0.02 * CUT_AT_ONE, 0.02)


def test_caes_head_is_xaviers() -> None:
    """The official CAE draws every linear layer again, by Xavier's rule."""
    fields = {"tokenizer": KMEANS, "regressor_depth": 1, "decoder_depth": 1}
    bound = math.sqrt(6 / (16 + KMEANS["num_ids"]))  # type: ignore[operator]
    check(drawn("cae", "regressor/head/kernel", **fields), bound / math.sqrt(3), bound)


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_the_normal_of_dinos_head_is_not_cut(name: str) -> None:
    """DINO's `trunc_normal_` cuts at ±2, which is a hundred deviations."""
    values = drawn(name, "head/linear1/kernel", **HEAD)
    check(values, 0.02, 0.2)
    assert (np.abs(values) > 0.04).mean() == pytest.approx(0.0455, abs=0.015)


def test_ibots_mask_token_starts_at_zero() -> None:
    assert not drawn("ibot", "encoder/mask_token", **HEAD).any()
