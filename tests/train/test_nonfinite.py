"""A loss that is infinite or NaN stops a run, or is skipped, and is never saved as a result."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import losses, overrides, run, state_of, toy_config

from occinv import cli
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.train.loop import NonFinite

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once


@pytest.fixture(scope="module")
def arguments(images: Path) -> list[str]:
    """`--config …` of eight steps of Toy, logged at every step and saved at every second."""
    often = overrides("train.log_every.steps=1", "train.checkpoint_every.steps=2")
    return ["--config", f"{toy_config(images.parent)}:{images}", *often]


@pytest.mark.parametrize("often", [True, False])
def test_a_loss_that_is_no_number_stops(
    often: bool, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is logged at each step or noticed at the next checkpoint or end."""
    fields = overrides("objective.nan_steps=(3, -1)")
    fields += overrides(f"train.log_every.steps={1 if often else 50}")
    command = ["train", *arguments, "--workdir", str(tmp_path), *fields]
    assert cli.main(command) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("occinv: loss or gradient not finite in 1 of ")
    assert "the first was step 3" in said
    assert said.endswith("the last good checkpoint is 2")
    assert files.load_run(tmp_path).step == 2
    assert not (tmp_path / files.RESULT).exists()
    assert cli.main(command) == 1  # and again, from step 2


def test_a_loss_that_is_no_number_before_any_checkpoint(
    arguments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(NonFinite, match=r"first was step 1; no checkpoint was saved"):
        run(arguments, tmp_path, "objective.nan_steps=(1, -1)")


def test_a_validation_loss_that_is_no_number_is_no_result(
    arguments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(NonFinite, match="the validation loss is nan after step 8"):
        run(arguments, tmp_path, "objective.nan_steps=(8, -1)", "train.max_nonfinite=100")
    assert not (tmp_path / files.RESULT).exists()


def test_steps_that_are_no_number_may_be_skipped(arguments: list[str], tmp_path: Path) -> None:
    run(arguments, tmp_path / "whole")
    bad = "objective.nan_steps=(5, 6)"
    outcome = run(arguments, tmp_path / "two", bad, "train.max_nonfinite=2")
    assert outcome.step == 8
    state = state_of(tmp_path / "two")
    assert next(v for k, v in state.items() if "['nonfinite']" in k) == 2
    assert next(v for k, v in state.items() if "['first_nonfinite']" in k) == 5
    assert all(np.isfinite(value).all() for value in state.values())
    ours, undisturbed = losses(tmp_path / "two"), losses(tmp_path / "whole")
    assert [step for step, loss in ours.items() if np.isnan(loss)] == [5, 6]
    assert [ours[step] for step in range(1, 5)] == [undisturbed[step] for step in range(1, 5)]
    with Checkpoints(tmp_path / "two" / files.CHECKPOINTS, read_only=True) as checkpoints:
        before, after = (checkpoints.restore_params(step)[1] for step in (4, 6))
    jax.tree.map(np.testing.assert_array_equal, before, after)

    with pytest.raises(NonFinite, match=r"in 2 of 6 steps .*max_nonfinite=1.* was step 5"):
        run(arguments, tmp_path / "one", bad, "train.max_nonfinite=1")


def test_a_run_that_explodes_stops(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match=r"the last good checkpoint is 2"):
        run(arguments, tmp_path, "optimizer.base_lr=1e30", "optimizer.warmup.steps=2")
