"""DINO through the whole loop: crops of several sizes, a center, late parameters."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import (
    Crash,
    assert_same_end,
    at_step,
    compile_once,
    crash,
    make_images,
    run,
    state_of,
    tiny,
)

from occinv.train import workdir

FIELDS = (
    "objective.num_prototypes=8",
    "objective.head_hidden=16",
    "objective.bottleneck=4",
    "objective.local_crops=1",
    "objective.freeze_last_layer.steps=2",
)


def test_a_crash_and_again(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    arguments = tiny(
        "dino", images, "train.duration.steps=4", "train.checkpoint_every.epochs=None",
        "train.checkpoint_every.steps=1", *FIELDS,
    )  # fmt: skip
    whole, again = tmp_path / "whole", tmp_path / "again"
    with compile_once(tmp_path / "compiled"):
        run(arguments, whole)
        with pytest.raises(Crash):
            run(arguments, again, watch=at_step(3, crash))
        run(arguments, again)
    assert_same_end(again, whole)
    assert np.isfinite(json.loads((whole / workdir.RESULT).read_text())["metrics"]["loss"])
    state = state_of(whole)
    center = next(value for key, value in state.items() if "center" in key)
    assert center.shape == (8,) and center.any()
