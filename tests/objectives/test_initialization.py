"""The initial deviations of heads and mask tokens are those of each method's official code."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest
from small_objectives import make

from occinv.objectives import forward

# The deviation of a normal of deviation 1 that is cut at one deviation: its variance is
# 1 - 2 φ(1) / (2 Φ(1) - 1).
CUT_AT_ONE = math.sqrt(1 - math.sqrt(2 / math.pi) * math.exp(-0.5) / math.erf(1 / math.sqrt(2)))
NUM_IDS = 400
TOKENS = {"tokenizer": {"name": "kmeans", "num_ids": NUM_IDS}, "color": None}
HEAD = {"num_prototypes": 8, "head_hidden": 64, "bottleneck": 64, "local_crops": 0}
FIELDS: dict[str, dict[str, Any]] = {
    "beit": TOKENS,
    "cae": {**TOKENS, "regressor_depth": 1, "decoder_depth": 1},
    "data2vec": {"average_top_k": 1, "color": None},
    "dino": HEAD,
    "ibot": HEAD,
    "simmim": {},
}


@functools.cache
def initial(name: str) -> Any:
    objective = make(name, **FIELDS[name])
    return jax.device_get(jax.jit(lambda rng: forward.init(objective, rng)[0])(jax.random.key(0)))


def drawn(name: str, path: str) -> np.ndarray:
    """Return the initial values of a parameter of a small objective, flat."""
    params = initial(name)
    for key in path.split("/"):
        params = params[key]
    return np.ravel(params)


def check(values: np.ndarray, deviation: float, largest: float) -> None:
    """Check the deviation within four of its errors, and that no value is above `largest`."""
    error = 4 / math.sqrt(2 * len(values))
    assert values.std() == pytest.approx(deviation, rel=error)
    assert np.abs(values).max() <= largest


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("beit", "head/kernel"),
        ("beit", "encoder/mask_token"),
        ("simmim", "encoder/mask_token"),
        ("data2vec", "predictor/kernel"),
        ("data2vec", "encoder/mask_token"),
        ("cae", "regressor/mask_token"),
    ],
)
def test_beits_normal_is_cut_at_one_deviation(name: str, path: str) -> None:
    check(drawn(name, path), 0.02 * CUT_AT_ONE, 0.02)


def test_caes_head_is_xaviers() -> None:
    """The official CAE draws every linear layer again, by Xavier's rule."""
    bound = math.sqrt(6 / (16 + NUM_IDS))
    check(drawn("cae", "regressor/head/kernel"), bound / math.sqrt(3), bound)


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_the_normal_of_dinos_head_is_not_cut(name: str) -> None:
    """DINO's `trunc_normal_` cuts at ±2, which is a hundred deviations."""
    values = drawn(name, "head/linear1/kernel")
    check(values, 0.02, 0.2)
    # 4.55 % of a normal is beyond two deviations.
    assert (np.abs(values) > 0.04).mean() == pytest.approx(0.0455, abs=0.015)


def test_ibots_mask_token_starts_at_zero() -> None:
    assert not drawn("ibot", "encoder/mask_token").any()
