"""MoCo v3 against the official moco/builder.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.tree_util import DictKey
from official import (
    agrees,
    differentiated,
    group,
    inputs,
    objective_of,
    ours,
    paths,
    pixels_of,
    with_views,
)

from occinv import schema
from occinv.objectives import forward
from occinv.objectives.base import FROZEN
from occinv.train.step import frozen_parts
from occinv.train.update_rules import is_decayed
from occinv.transforms.view import whole


@pytest.fixture(scope="module")
def moco(reference: Path) -> Any:
    return np.load(reference / "mocov3.npz")


def moco_weights(weights: dict[str, np.ndarray]) -> Any:
    """Return official parameters of encoder, projector and predictor as our nested dict."""
    learned = {
        name.removeprefix("base_encoder."): value
        for name, value in weights.items()
        if not name.startswith("momentum_encoder.")
        and "running" not in name
        and "num_batches" not in name
    }
    tree = ours(learned)
    for head in set(tree) - {"encoder"}:  # modules are numbered with the ReLUs between them
        numbered = tree[head]
        tree[head] = {
            f"{'linear' if int(i) % 3 == 0 else 'norm'}{int(i) // 3}": value
            for i, value in numbered.items()
        }
    return tree


def momentum_weights(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the parameters of the momentum encoder, by their names in the encoder."""
    start = "momentum_encoder."
    return {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}


@pytest.fixture(scope="module")
def moco_outcome(moco: Any) -> Any:
    objective = objective_of(
        moco,
        {
            "name": "mocov3",
            "temperature": float(moco["temperature"]),
            "momentum": float(moco["momentum"]),
            "head_hidden": int(moco["mlp_dim"]),
            "head_out": int(moco["dim"]),
        },
        train_patch=False,
    )
    count = objective.setting.encoder.num_patches
    views = [whole(pixels_of(moco[name]), count) for name in ("view1", "view2")]
    objective = with_views(objective, *views)
    weights = group(moco, "state")
    state = {"target": moco_weights(momentum_weights(weights))}

    def loss(params: Any) -> Any:
        return forward.mean_loss(objective, params, state, *inputs(len(moco["view1"])))

    return differentiated(loss, moco_weights(weights))


def test_moco_loss(moco: Any, moco_outcome: Any) -> None:
    (loss, _), _ = moco_outcome
    agrees("MoCo v3: loss", loss, moco["loss"], 1e-5)


def test_every_moco_gradient(moco: Any, moco_outcome: Any) -> None:
    _, gradient = moco_outcome
    expected = moco_weights(group(moco, "grad"))
    agrees("MoCo v3: every gradient", gradient, expected)
    for frozen in ("patch_embed", "position"):
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["encoder"][frozen]))


def test_moco_momentum_moves_before_the_forward_pass(moco: Any, moco_outcome: Any) -> None:
    (_, (state, _)), _ = moco_outcome
    expected = moco_weights(group(moco, "momentum_after"))
    agrees("MoCo v3: momentum update", state["target"], expected, 1e-6)


def test_the_frozen_parameters_of_moco(moco: Any) -> None:
    trained = set(paths(moco_weights(group(moco, "grad"))))
    frozen = {path[:2] for path in set(paths(moco_weights(group(moco, "state")))) - trained}
    groups = frozen_parts(schema.Encoder(train_patch=False), "all")
    assert groups and set(groups.values()) == {FROZEN}
    assert set(groups) <= frozen
    assert not {path[:2] for path in trained} & set(groups)
    config = schema.Optimizer(decay="all")
    assert all(is_decayed(tuple(map(DictKey, path)), config) for path in trained)
