"""What runs of one process share, and what they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_runs import assert_same_end, run, tiny

from occinv.data.batch import Batch
from occinv.train import shared, step
from occinv.train.shared import KEPT


def test_equal_arguments_give_the_kept_result() -> None:
    calls = []

    @shared.shared
    def make(*values: object) -> list[object]:
        calls.append(values)
        return [*values]

    assert make(1, "a") is make(1, "a")
    assert make(2, "a") is not make(1, "a")
    assert make({}) is not make({})  # not hashable: made each time
    assert len(calls) == 4
    shared.forget()
    make(1, "a")
    assert len(calls) == 5


def test_few_results_are_kept() -> None:
    calls = []

    @shared.shared
    def make(value: int) -> int:
        calls.append(value)
        return value

    for value in (*range(KEPT + 1), 0):
        make(value)
    assert calls == [*range(KEPT + 1), 0]


def test_runs_that_differ_in_what_a_program_does_not_hold_share_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []  # the number of images of each traced step
    make_step = step.make_step

    def counting(*arguments: Any) -> Any:
        function = make_step(*arguments)

        def traced(state: Any, batch: Batch) -> Any:
            made.append(len(batch.label))
            return function(state, batch)

        return traced

    monkeypatch.setattr(step, "make_step", counting)
    arguments = tiny("mae", images, "train.duration.steps=3", "optimizer.warmup.steps=1")
    run(arguments, tmp_path / "first")
    for name, field, count in (
        ("other seed", "seed=1", 1),
        ("other masks", "objective.mask_ratio=0.5", 2),
        ("other decay", "optimizer.weight_decay=0.5", 3),
        ("other length", "train.duration.steps=4", 4),
        ("other loss", "objective.normalize_target=False", 5),
        ("other attention", "train.attention=pallas", 6),
        ("other precision", "train.precision=bfloat16", 7),
    ):
        run(arguments, tmp_path / name, field)
        assert len(made) == count, name
    with jax.default_matmul_precision("highest"):
        run(arguments, tmp_path / "other setting")
    assert len(made) == 8
    shared.forget()
    run(arguments, tmp_path / "alone", "seed=1")
    assert_same_end(tmp_path / "alone", tmp_path / "other seed")
