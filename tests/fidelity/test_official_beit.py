"""BEiT against the official modeling_pretrain.py, with its relative position and layer scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from official import agrees, group, outcome_of
from official_beit import arrays_of, beit_objective, beit_weights, with_images

from occinv.objectives import forward


@pytest.fixture(scope="module")
def beit(reference: Path) -> Any:
    return arrays_of(reference, "beit.npz")


@pytest.fixture(scope="module")
def beit_model(beit: Any) -> Any:
    weights = group(beit, "W")
    heads = weights["rel_pos_bias.relative_position_bias_table"].shape[1]
    tokenizer = {"name": "kmeans", "num_ids": len(weights["lm_head.bias"])}
    return beit_objective(beit, weights, heads, {"name": "beit", "tokenizer": tokenizer})


@pytest.fixture(scope="module")
def beit_outcome(beit: Any, beit_model: Any) -> Any:
    objective = with_images(beit_model, beit["x"], beit["mask"], beit_model.codebook.num_ids)
    params, state = beit_weights(group(beit, "W"), "head"), {"tokenizer": beit["ids"]}
    return outcome_of(objective, params, state, len(beit["x"]))


def test_beits_parameters_are_the_official_ones(beit: Any, beit_model: Any) -> None:
    params, _ = jax.eval_shape(lambda: forward.init(beit_model, jax.random.key(0)))
    official = beit_weights(group(beit, "W"), "head")
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(np.shape, official)


def test_beit_loss(beit: Any, beit_outcome: Any) -> None:
    (loss, _), _ = beit_outcome
    agrees("BEiT: loss", loss, beit["loss"], 1e-5)


def test_every_beit_gradient(beit: Any, beit_outcome: Any) -> None:
    _, gradient = beit_outcome
    # The official keys have no bias; the gradient of ours is 0.
    agrees("BEiT: every gradient", gradient, beit_weights(group(beit, "G"), "head"))
