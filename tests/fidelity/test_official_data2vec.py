"""data2vec against the official modeling_cyclical.py and engine_for_cyclical.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from official import agrees, fitting, group, outcome_of
from official_beit import arrays_of, beit_objective, beit_weights, with_images

from occinv.objectives import forward


@pytest.fixture(scope="module")
def data2vec(reference: Path) -> Any:
    return arrays_of(reference, "data2vec.npz")


def data2vec_objective(file: Any, last_blocks: int) -> Any:
    """Return the objective whose target is the mean of the teacher's `last_blocks`."""
    weights = group(file, "W")
    heads = weights["rel_pos_bias.relative_position_bias_table"].shape[1]
    section = {"name": "data2vec", "average_top_k": last_blocks}
    return beit_objective(file, weights, heads, section)


@pytest.fixture(scope="module")
def data2vec_outcome(data2vec: Any) -> Any:
    # The arrays are of one step, so the teacher does not move before it.
    teacher = beit_weights(group(data2vec, "T"), "predictor")
    state = {"target": {"encoder": teacher["encoder"]}}

    def compute(last_blocks: int) -> Any:
        objective = data2vec_objective(data2vec, last_blocks)
        objective = with_images(objective, data2vec["x"], data2vec["mask"])
        params = beit_weights(group(data2vec, "W"), "predictor")
        return outcome_of(objective, params, state, len(data2vec["x"]))

    depth = len(teacher["encoder"]["blocks"]["scan"]["norm1"]["scale"])
    numbers = sorted(range(1, depth + 1), key=lambda number: abs(number - 2))
    return fitting(compute, numbers, data2vec["loss"])


def test_data2vecs_parameters_are_the_official_ones(data2vec: Any) -> None:
    objective = data2vec_objective(data2vec, last_blocks=1)
    params, _ = jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    official = beit_weights(group(data2vec, "W"), "predictor")
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(np.shape, official)


def test_data2vec_loss(data2vec: Any, data2vec_outcome: Any) -> None:
    (loss, _), _ = data2vec_outcome
    agrees("data2vec: loss", loss, data2vec["loss"], 1e-5)


def test_every_data2vec_gradient(data2vec: Any, data2vec_outcome: Any) -> None:
    _, gradient = data2vec_outcome
    # The official keys have no bias; the gradient of ours is 0.
    expected = beit_weights(group(data2vec, "G"), "predictor")
    agrees("data2vec: every gradient", gradient, expected)
