"""What the invariance evaluator writes: headlines, floors that runs share, and its errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pytest
from example_models import (
    DECODER,
    DEPTH,
    subject,
)

from occinv.data.batch import Batch
from occinv.evaluators import invariance as module
from occinv.evaluators.base import Record, Subject, run_evaluator
from occinv.evaluators.invariance import (
    FEATURES,
    Curves,
    Invariance,
    blind,
    invariance_curves,
    plain,
    untrained,
)
from occinv.models.vit import ViT
from occinv.schema import UserError

MAE = {"name": "mae", **DECODER}
CMAE = {"name": "cmae", "head_hidden": 8, "head_out": 8}
RATIOS = (0.25, 0.75)
B = 16


# The evaluator.


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ViT, Any]]:
    """The encoder and the parameters of every call of `invariance_curves`, which returns zeros."""
    calls: list[tuple[ViT, Any]] = []

    def zeros(encoder: ViT, params: Any, batches: Any, ratios: Any, **_: Any) -> Curves:
        calls.append((encoder, params))
        values = {name: np.zeros((len(ratios), DEPTH)) for name in FEATURES}
        return Curves(tuple(ratios), (1, 2), values, values, values, 8, 0.1)

    monkeypatch.setattr(module, "invariance_curves", zeros)
    return calls


def evaluate(evaluator: Invariance, model: Subject) -> Record:
    return run_evaluator("invariance", evaluator, model, "run", "mae", 3)[0]


def test_models_of_one_shape_share_a_floor(measured: list[tuple[ViT, Any]]) -> None:
    evaluator = Invariance(num_images=12, ratios=(0.5,), untrained=2)
    first, second = subject(MAE), subject(MAE, seed=1)
    record = evaluate(evaluator, first)
    assert list(record.details["floor"]) == ["untrained 0", "untrained 1", "blind"]
    assert len(measured) == 4
    assert measured[0][1] is first.params["encoder"]
    kernels = [params["patch_embed"]["kernel"] for _, params in measured[1:]]
    assert (kernels[0] != kernels[1]).all() and not kernels[2].any()
    blocks = [jax.tree.leaves(params["blocks"]) for _, params in measured[1:]]
    assert all(map(np.array_equal, blocks[0], blocks[2]))
    evaluate(evaluator, second)
    # C-MAE has a mask token besides, which is not used where patches are dropped.
    evaluate(evaluator, subject(CMAE))
    assert len(measured) == 6
    assert len({encoder for encoder, _ in measured}) == 1
    evaluate(Invariance(num_images=12, ratios=(0.5,), untrained=2), first)  # another evaluator
    assert len(measured) == 10


def test_other_images_and_shapes_have_their_own_floor(
    measured: list[tuple[ViT, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "untrained", lambda *_: {"patch_embed": {}})  # compiles nothing
    evaluator = Invariance(num_images=12, ratios=(0.5,), untrained=1)
    model = subject(MAE)
    evaluate(evaluator, model)
    assert len(measured) == 3
    for change in ({"classes": "0,1,2"}, {"eval_source": "photos"}, {"resize_ratio": 0.5}):
        data = dataclasses.replace(model.data, **change)
        evaluate(evaluator, dataclasses.replace(model, data=data))
    assert len(measured) == 12
    setting = model.objective.setting
    for encoder in (setting.encoder.clone(gelu="tanh"), setting.encoder.clone(heads=4)):
        changed = dataclasses.replace(
            model.objective, setting=dataclasses.replace(setting, encoder=encoder)
        )
        evaluate(evaluator, dataclasses.replace(model, objective=changed))
    assert len(measured) == 18


def test_the_record_has_headlines_curves_and_floors() -> None:
    evaluator = Invariance(num_images=20, ratios=RATIOS, untrained=1, batch_size=B, seed=2)
    model = subject(MAE)
    record, result = run_evaluator("invariance", evaluator, model, "runs/mae", "mae", 3)
    encoder = plain(model.encoder)
    own = [
        invariance_curves(encoder, params, [*batches(model, 20)], RATIOS, seed=2)
        for params in (model.params["encoder"], untrained(encoder, 0), blind(untrained(encoder, 0)))
    ]
    for measure in ("cka", "retrieval", "cosine"):
        expected = [getattr(curves, measure)["class"][1, -1] for curves in own]
        assert record.values[measure] == pytest.approx(expected[0], abs=2e-5)
        assert record.values[f"{measure}_floor"] == pytest.approx(max(expected[1:]), abs=2e-5)
    assert record.details["cka"]["tokens"] == pytest.approx(own[0].cka["tokens"], abs=2e-5)
    assert list(record.details["floor"]) == ["untrained 0", "blind"]
    assert record.protocol == {
        "ratios": RATIOS,
        "removed": "drop",
        "seed": 2,
        "batch_size": B,  # retrieval is among so many images
    }
    assert record.details["token"] == "class"
    assert "class token, last block, 75% of the patches removed; 20 images" in result.text
    json.dumps(dataclasses.asdict(record), allow_nan=False)


def batches(model: Subject, count: int) -> Iterable[Batch]:
    source, _ = model.open(None, count)
    return model.batches(source, B)


def test_the_headline_is_the_token_that_the_objective_trains() -> None:
    curves = {
        name: np.array([[0.0, 0.1], [0.2, value]])
        for name, value in zip(FEATURES, (0.3, 0.4, 0.5, 0.6), strict=True)
    }
    found = Curves((0.3, 0.8), (1, 2), curves, curves, curves, 8, 0.1)
    assert (found.headline("cka", "class"), found.headline("cosine", "mean")) == (0.3, 0.4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"removed": "mask_token"}, "trained without a mask token"),
        ({"ratios": (0.5, 1.0)}, "mask ratio 1.0"),
        ({"ratios": (0.99,)}, "leaves none of 16 patches"),
        ({"ratios": ()}, "ratios is empty"),
    ],
)
def test_an_impossible_choice_is_an_error_before_any_image(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Subject, "open", lambda *_: pytest.fail("images were opened"))
    with pytest.raises(UserError, match=message):
        evaluate(Invariance(**change), subject(MAE))
