"""Runs that become longer, and runs that start from all of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import assert_same_end, losses, overrides, run, state_of, toy_config

from occinv import cli, schema
from occinv.config import load_config
from occinv.schema import UserError
from occinv.train import workdir as files
from occinv.train.extend import extend
from occinv.train.step import lengths_of

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

OFTEN = ("train.log_every.steps=1", "train.checkpoint_every.steps=1", "data.num_threads=1")
WSD = ("optimizer.schedule=wsd", "optimizer.cooldown.share=0.25")
LONGER = "train.duration.steps=12"


@pytest.fixture(scope="module")
def arguments(images: Path) -> list[str]:
    """`--config …` of eight steps of Toy, logged and saved at every step."""
    return ["--config", f"{toy_config(images.parent)}:{images}", *overrides(*OFTEN)]


def experiment(arguments: list[str], *fields: str) -> schema.Experiment:
    return schema.resolve(load_config(arguments[1], [*arguments[2:], *overrides(*fields)]))


def test_wsd_extended_before_its_cooldown_is_the_longer_run(
    arguments: list[str], tmp_path: Path
) -> None:
    """The cooldown of eight steps starts after the sixth, and that of twelve after the ninth."""
    run(arguments, tmp_path / "whole", *WSD, LONGER)
    run(arguments, tmp_path / "short", *WSD, "train.stop_after.steps=6")
    assert (tmp_path / "short" / files.RESULT).exists()
    said = extend(experiment(arguments, *WSD, LONGER), tmp_path / "short")
    assert said == "extended from 6 to 12 steps; the learning rate of step 7 stays at 0.0312"
    assert run(arguments, tmp_path / "short", *WSD, LONGER).step == 12
    assert_same_end(tmp_path / "short", tmp_path / "whole")


def test_a_finished_cosine_run_goes_on_with_the_longer_cosine(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    command = ["train", *arguments, "--workdir", str(workdir)]
    assert cli.main(command) == 0
    before = losses(workdir)
    longer = [*command, *overrides(LONGER)]
    assert cli.main(longer) == 2
    assert "train.duration.steps=8 (now 12)" in capsys.readouterr().err
    assert losses(workdir) == before
    assert cli.main([*longer, "--extend"]) == 0
    shown = capsys.readouterr().out
    # Step 9 is the seventh of ten after the warm-up: (1 + cos 0.6 π) / 2 of 1/32.
    assert "from 8 to 12 steps; the learning rate of step 9 goes from 0 to 0.0108" in shown
    assert {step: loss for step, loss in losses(workdir).items() if step <= 8} == before
    assert json.loads((workdir / files.RESULT).read_text())["step"] == 12
    assert cli.main([*longer, "--extend"]) == 0, "the same command again has nothing to do"
    assert "extended" not in capsys.readouterr().out
    assert cli.main(longer) == 0


def test_a_stopped_run_goes_on_and_is_the_run_that_did_not_stop(
    arguments: list[str], tmp_path: Path
) -> None:
    run(arguments, tmp_path / "whole")
    run(arguments, tmp_path / "stopped", "train.stop_after.steps=5")
    said = extend(experiment(arguments), tmp_path / "stopped")
    assert said is not None and "from 5 to 8 steps" in said and "stays at" in said
    assert run(arguments, tmp_path / "stopped").step == 8
    assert_same_end(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["train.duration.steps=7"], "has 8 steps of 8, and the config has 7 of 7. Give a longer"),
        (["train.stop_after.steps=7"], "has 8 steps of 8, and the config has 7 of 8"),
        ([LONGER, "seed=1"], r"seed=0 \(now 1\)"),
        ([LONGER, "train.batch_size=4"], r"train.batch_size=8 \(now 4\)"),
    ],
)
def test_extensions_that_are_refused(
    arguments: list[str], tmp_path: Path, fields: list[str], said: str
) -> None:
    files.claim(tmp_path, experiment(arguments), ("dark", "light"))
    before = (tmp_path / files.CONFIG).read_text()
    with pytest.raises(UserError, match=said):
        extend(experiment(arguments, *fields), tmp_path)
    assert (tmp_path / files.CONFIG).read_text() == before
    with pytest.raises(UserError, match="holds no run. Leave out --extend"):
        extend(experiment(arguments), tmp_path / "nothing")


def test_warm_up_and_cooldown_must_fit(arguments: list[str]) -> None:
    lengths = lengths_of(experiment(arguments, *WSD), 24)
    assert (lengths.warmup, lengths.cooldown, lengths.steps) == (2, 2, 8)
    too_long = experiment(arguments, *WSD, "optimizer.cooldown.steps=7")
    with pytest.raises(UserError, match=r"\(2 \+ 7 and 8 steps\); shorten one"):
        lengths_of(too_long, 24)
    lengths_of(experiment(arguments, "optimizer.cooldown.steps=7"), 24)  # cosine has no cooldown
