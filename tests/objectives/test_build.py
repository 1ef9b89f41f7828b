"""A config's `objective` section becomes an objective, or an error of one line."""

from __future__ import annotations

import re
import sys
import types
from typing import Any

import pytest

from occinv import schema
from occinv.models import vit
from occinv.objectives import OBJECTIVES
from occinv.objectives.base import Objective, Setting, make_objective


def setting(num_classes: int = 3) -> Setting:
    return Setting(
        vit.make_vit(schema.Encoder(name="micro", patch_size=8, depth=6), 32), num_classes, 100
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_name_builds_and_describes_its_axes(name: str) -> None:
    objective = make_objective({"name": name}, setting())
    assert isinstance(objective, Objective)
    assert all(isinstance(text, str) and text for text in objective.axes)


QUERIES = {"mask_token": False, "predictor": "queries"}


def test_defaults_are_those_of_the_paper() -> None:
    mae, rmae, cmae = (
        make_objective({"name": name}, setting()) for name in ("mae", "rmae", "cmae")
    )
    assert (mae.mask_ratio, mae.normalize_target) == (0.75, True)
    assert (mae.decoder_width, mae.decoder_depth, mae.decoder_heads) == (512, 8, 16)
    assert (rmae.mask_ratio, rmae.t2, rmae.constraint_weight) == (0.75, "complement", 1.0)
    assert (rmae.t2_mask_ratio, rmae.constraint_region) == (0.25, "all")
    assert (cmae.mask_ratio, cmae.tokens, cmae.negatives) == (0.75, "patch", "position")
    assert (cmae.temperature, cmae.momentum, cmae.momentum_schedule) == (0.2, 0.996, "constant")
    assert (cmae.head_hidden, cmae.head_out, cmae.head_norm) == (2048, 768, "none")
    assert cmae.mask_token and cmae.symmetric and cmae.similarity == "infonce"
    assert (cmae.t2, cmae.predictor, cmae.color_order) == ("complement", "mlp", "before")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "rmea"}, "unknown objective.name='rmea' (did you mean 'rmae'?)"),
        ({}, "unknown objective.name=''"),
        ({"name": "mae", "mask_ration": 0.5}, "(did you mean 'mask_ratio'?)"),
        ({"name": "mae", "mask_ratio": 1.0}, "mask_ratio=1.0, expected a number < 1"),
        ({"name": "mae", "mask_ratio": 0.99}, "leaves none of 16 patches visible"),
        ({"name": "mae", "mask_ratio": "a"}, "objective.mask_ratio='a', expected float"),
        ({"name": "mae", "setting": 1}, "unknown field 'objective.setting'"),
        ({"name": "rmae", "t2": "complementary"}, "(did you mean 'complement'?)"),
        ({"name": "rmae", "t2": "independent", "t2_mask_ratio": 0.0}, "mask ratio 0.0, expected"),
        ({"name": "cmae", "mask_token": False}, "T1 and T2 share no patch to compare"),
        (
            {"name": "cmae", "tokens": "patch+class", "mask_token": False},
            "T1 and T2 share no patch to compare",
        ),
        ({"name": "cmae", "predictor": "queries"}, "use objective.mask_token=False, objective.tok"),
        ({"name": "cmae", **QUERIES, "t2": "identity"}, "predicts the patch tokens that T1 lacks"),
        ({"name": "cmae", **QUERIES, "tokens": "class"}, "predicts the patch tokens that T1 lacks"),
        ({"name": "cmae", **QUERIES, "head_out": 18}, "head_out=18 with objective.predictor"),
        ({"name": "cmae", "tokens": "class", "negatives": "image"}, "has no negatives"),
        ({"name": "cmae", "tokens": "mean", "negatives": "image"}, "has no negatives"),
        (
            {"name": "cmae", "similarity": "byol", "negatives": "batch"},
            "objective.negatives='batch' with objective.similarity='byol', which has no negatives",
        ),
        ({"name": "cmae", "contrast_group": 3}, "a divisor of train.batch_size=1"),
        ({"name": "mocov3", "contrast_group": 3}, "a divisor of train.batch_size=1"),
        ({"name": "cmae", "color": {"hues": 0.1}}, "(did you mean 'hue'?)"),
        (
            {"name": "cmae", "color": 0.4},
            "a section or None, such as {'brightness': 0.4}, or {} for its defaults",
        ),
        ({"name": "mae", "batch_size": 8}, "expected one of: augmented, color"),
        ({"name": "no_such_module:Mine"}, "cannot be imported"),
        ({"name": "json:dumps"}, "'json:dumps' is not a subclass of Objective"),
    ],
)
def test_each_mistake_gives_an_error_of_one_line(section: dict[str, Any], message: str) -> None:
    with pytest.raises(schema.UserError, match=re.escape(message)) as caught:
        make_objective(section, setting())
    assert "\n" not in str(caught.value)


def test_classification_of_one_class_is_a_mistake() -> None:
    with pytest.raises(schema.UserError, match="needs 2 or more"):
        make_objective({"name": "classification"}, setting(num_classes=1))


def test_an_objective_of_another_module(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = type(make_objective({"name": "mae"}, setting()))
    module = types.ModuleType("elsewhere")
    module.Mine = type("Mine", (ours,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    objective = make_objective({"name": "elsewhere:Mine", "mask_ratio": 0.5}, setting())
    assert type(objective).__name__ == "Mine" and objective.mask_ratio == 0.5
