"""Runs that become longer, and runs that start from all of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import assert_same_end, losses, overrides, run, state_of, toy_config

from occinv import cli, schema
from occinv.config import load_config
from occinv.schema import UserError
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.train.extend import extend
from occinv.train.lengths import lengths_of
from occinv.train.prepare import prepare
from occinv.train.start_state import has_moments
from occinv.train.step import TrainState, as_items

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
    advice = "use another --workdir, or --extend for a longer run"
    assert f"train.duration.steps=8 (now 12); {advice}" in capsys.readouterr().err
    assert losses(workdir) == before
    extension = ["train", "--extend", "--workdir", str(workdir), *overrides(LONGER)]
    assert cli.main(extension) == 0, "the config is that of the run"
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
    with pytest.raises(UserError, match=r"holds no run. Leave out --extend"):
        extend(experiment(arguments), tmp_path / "nothing")


def test_warm_up_and_cooldown_must_fit(arguments: list[str]) -> None:
    lengths = lengths_of(experiment(arguments, *WSD), 24)
    assert (lengths.warmup, lengths.cooldown, lengths.steps) == (2, 2, 8)
    too_long = experiment(arguments, *WSD, "optimizer.cooldown.steps=7")
    with pytest.raises(UserError, match=r"\(2 \+ 7 and 8 steps\); shorten one"):
        lengths_of(too_long, 24)
    lengths_of(experiment(arguments, "optimizer.cooldown.steps=7"), 24)  # cosine has no cooldown


@pytest.fixture(scope="module")
def first(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of eight steps."""
    workdir = tmp_path_factory.mktemp("first") / "run"
    run(arguments, workdir)
    return workdir


def step_of(workdir: Path, arguments: list[str], *fields: str) -> dict[str, np.ndarray]:
    """The state after one step of a run, at a learning rate of 0."""
    run(arguments, workdir, "train.stop_after.steps=1", *fields)
    return state_of(workdir)


def test_init_params_takes_every_network(first: Path, arguments: list[str], tmp_path: Path) -> None:
    before = files.load_run(first).params
    state = step_of(tmp_path / "p", arguments, f"init_from={first}", "init=params")
    head, encoder = before["head"]["kernel"], before["encoder"]["scale"]
    np.testing.assert_array_equal(state["['params']['head']['kernel']"], head)
    np.testing.assert_array_equal(state["['params']['encoder']['scale']"], encoder)
    target = next(value for name, value in state.items() if "target" in name)
    np.testing.assert_array_equal(target, encoder)
    alone = step_of(tmp_path / "e", arguments, f"init_from={first}")
    assert (alone["['params']['head']['kernel']"] != head).any()
    np.testing.assert_array_equal(alone["['params']['encoder']['scale']"], encoder)


def test_init_state_takes_ema_and_moments_and_restarts_the_schedules(
    first: Path, arguments: list[str], tmp_path: Path
) -> None:
    """The learning rate of step 7 was not 0, and that of the first step of the warm-up is."""
    start = first / files.CHECKPOINTS / "6"
    fields = (f"init_from={start}", "init=state", "seed=3")
    begun = prepare(experiment(arguments, *fields)).start
    assert begun is not None
    assert (int(begun.step), int(begun.seed)) == (0, 3)
    with Checkpoints(first / files.CHECKPOINTS, read_only=True) as checkpoints:
        _, items = checkpoints.restore(as_items(begun), 6)
    before = TrainState(params=items["params"], **items["rest"])
    for part in ("params", "objective_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(begun, part), getattr(before, part))
    adam, old = (
        next(x for x in jax.tree.leaves(each.opt_state, is_leaf=has_moments) if has_moments(x))
        for each in (begun, before)
    )
    assert int(adam.count) == 6
    jax.tree.map(np.testing.assert_array_equal, adam.mu, old.mu)
    state = step_of(tmp_path / "s", arguments, *fields)
    head = before.params["head"]["kernel"]
    np.testing.assert_array_equal(state["['params']['head']['kernel']"], head)
    assert not np.array_equal(files.load_run(first).params["head"]["kernel"], head)


def test_a_state_that_does_not_fit_is_refused_before_anything_is_written(
    first: Path, arguments: list[str], tmp_path: Path
) -> None:
    for fields, said in (
        ((f"init_from={first}", "init=state", "optimizer.name=lars"), "init=state: .*init=params"),
        (("init=params",), "init='params' needs init_from"),
    ):
        with pytest.raises(UserError, match=said):
            run(arguments, tmp_path / "run", *fields)
    assert not (tmp_path / "run").exists()
