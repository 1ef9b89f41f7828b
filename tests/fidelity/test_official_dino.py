"""DINO against the official main_dino.py and vision_transformer.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import DictKey
from official import (
    agrees,
    group,
    objective_of,
    ours,
    outcome_of,
    path_of,
    pixels_of,
    with_views,
)

from occinv import schema
from occinv.train.update_rules import is_decayed
from occinv.transforms.view import whole


@pytest.fixture(scope="module")
def dino(reference: Path) -> Any:
    return np.load(reference / "dino.npz")


def dino_weights(weights: dict[str, np.ndarray]) -> Any:
    """Return official parameters of backbone and head as our nested dict."""
    norm = "head.last_layer.weight_"
    plain = {name.removeprefix("backbone."): v for name, v in weights.items() if norm not in name}
    tree = ours(plain)
    for i in sorted(tree["head"]):
        tree["head"][f"linear{int(i[-1]) // 2}x"] = tree["head"].pop(i)
    tree["head"] = {name.removesuffix("x"): value for name, value in tree["head"].items()}
    tree["head"]["last"] = {
        mine: weights[norm + theirs].T if mine == "kernel" else weights[norm + theirs][:, 0]
        for theirs, mine in (("v", "kernel"), ("g", "scale"))
        if norm + theirs in weights
    }
    return tree


@pytest.fixture(scope="module")
def dino_outcome(dino: Any) -> Any:
    head = json.loads(str(dino["head"]))
    objective = objective_of(
        dino,
        {
            "name": "dino",
            "num_prototypes": head["out_dim"],
            "head_hidden": head["hidden_dim"],
            "bottleneck": head["bottleneck_dim"],
            "local_crops": len(dino["local_crops"]),
            "local_size": dino["local_crops"].shape[2],
            "student_temperature": float(dino["student_temp"]),
            "teacher_temperature": float(dino["teacher_temp"]),
            "center_momentum": float(dino["center_momentum"]),
        },
        train_position=True,
    )
    size = objective.setting.encoder.patch_size
    views = [
        whole(pixels_of(crop), (crop.shape[1] // size) ** 2)
        for crop in (*dino["global_crops"], *dino["local_crops"])
    ]
    objective = with_views(objective, *views)
    # The arrays are of one step, so the teacher does not move before it.
    state = {
        "target": dino_weights(group(dino, "teacher")),
        "center": jnp.asarray(dino["center_before"][0]),
    }
    params = dino_weights(group(dino, "student"))
    return outcome_of(objective, params, state, len(views[0].pixels))


def test_the_output_for_every_crop(dino: Any, dino_outcome: Any) -> None:
    (_, (_, (student, teacher))), _ = dino_outcome
    agrees("DINO: student on all crops", np.concatenate(student), dino["student_out"])
    agrees("DINO: teacher", np.concatenate(teacher), dino["teacher_out"])


def test_dino_loss_and_center(dino: Any, dino_outcome: Any) -> None:
    (loss, (terms, _)), _ = dino_outcome
    agrees("DINO: loss", loss, dino["loss"], 1e-5)
    agrees("DINO: center", terms.state["center"], dino["center_after"][0])


def test_every_dino_gradient(dino: Any, dino_outcome: Any) -> None:
    _, gradient = dino_outcome
    expected = dino_weights(group(dino, "grad"))
    agrees("DINO: every gradient", gradient, expected)
    assert not gradient["head"]["last"]["scale"].any()  # theirs needs no gradient


def test_the_decayed_parameters_of_dino(dino: Any) -> None:
    config = schema.Optimizer(decay="positions")
    for name, value in group(dino, "grad").items():  # get_params_groups of the official utils.py
        theirs = not name.endswith(".bias") and value.ndim > 1
        last = ("head", "last", "kernel")
        path = last if "last" in name else path_of(name.removeprefix("backbone."), value.ndim)
        assert is_decayed(tuple(map(DictKey, path)), config) == theirs, name
