"""A run stopped, killed or damaged at any moment ends like one that was not.

Most runs here are of `tiny_runs.Toy`, which takes no time to compile and whose every loss depends
on all that a restart must find again: images, order, keys, step, parameters, optimizer and state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import (
    Crash,
    assert_same_end,
    at_step,
    crash,
    losses,
    overrides,
    run,
    state_of,
    steps_of,
    tensorboard,
    toy_config,
)

from occinv import cli, parallel, schema
from occinv.data.folder import open_folder
from occinv.data.order import sample_indices
from occinv.progress import Progress
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.train.disk import RunFailed
from occinv.train.lock import LOCK
from occinv.train.writers import read_scalars

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

OFTEN = ("train.log_every.steps=1", "train.checkpoint_every.steps=2")


@pytest.fixture(scope="module")
def arguments(images: Path) -> list[str]:
    """`--config …` of eight steps of Toy, logged at every step and saved at every second."""
    spec = f"{toy_config(images.parent)}:{images}"
    return ["--config", spec, *overrides(*OFTEN)]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert run(arguments, workdir).stopped_by is None
    return workdir


def test_a_run_writes_what_it_says(whole: Path) -> None:
    assert files.load_run(whole).step == 8
    assert list(losses(whole)) == [1, 2, 3, 4, 5, 6, 7, 8]
    lines = read_scalars(whole / files.METRICS)
    assert lines[0]["step"] == 0
    assert lines[0]["parameters"] == 3 + 9
    assert lines[0]["flops_per_image"] > 0
    for line in lines[1:9]:
        assert 0 <= line["data_wait_fraction"] <= 1
        assert line["images_per_second"] > 0
    assert [line["learning_rate"] for line in lines[1:4]] == pytest.approx([0, 1 / 64, 1 / 32])
    result = json.loads((whole / files.RESULT).read_text())
    images = result.pop("images")
    assert result.pop("run") == json.loads((whole / files.CONFIG).read_text())["run"]
    assert result == {"step": 8, "metrics": {"loss": lines[-1]["eval/loss"]}}
    assert (images["count"], images["split"]) == (12, "validation")
    assert list(whole.glob("events.out.tfevents*"))


def test_a_step_learns_and_all_that_it_should_change_changes(whole: Path) -> None:
    """Else the comparisons of ends below would compare what never moves."""
    with Checkpoints(whole / files.CHECKPOINTS, read_only=True) as checkpoints:
        before, after = (checkpoints.restore_params(step)[1] for step in (6, 8))
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), before, after)
    assert jax.tree.all(moved)
    state = state_of(whole)
    assert next(value for name, value in state.items() if name.endswith("['step']")) == 8
    assert any("target" in name for name in state)
    assert any("mu" in name for name in state)


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_crash_and_again(step: int, arguments: list[str], whole: Path, tmp_path: Path) -> None:
    """Nothing is saved at the crash: the steps since the last checkpoint are taken again."""
    with pytest.raises(Crash):
        run(arguments, tmp_path, watch=at_step(step, crash))
    assert run(arguments, tmp_path).step == 8
    assert_same_end(tmp_path, whole)


def test_many_crashes(arguments: list[str], whole: Path, tmp_path: Path) -> None:
    for step in (3, 5, 5, 7, 8):
        with pytest.raises(Crash):
            run(arguments, tmp_path, watch=at_step(step, crash))
    run(arguments, tmp_path)
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_goes_on(
    number: signal.Signals,
    status: int,
    arguments: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", *arguments, "--workdir", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        watch = at_step(5, lambda: signal.raise_signal(number))
        patched.setattr(Progress, "stage", lambda self, name: watch)
        assert cli.main(command) == status
    assert "stopped and saved at step 5 of 8" in capsys.readouterr().out
    assert files.load_run(tmp_path / "run").step == 5
    assert not (tmp_path / "run" / files.RESULT).exists()
    assert cli.main(command) == 0
    assert_same_end(tmp_path / "run", whole)


def test_a_signal_at_the_last_step_is_no_stop(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    outcome = run(arguments, tmp_path, watch=at_step(8, lambda: signal.raise_signal(15)))
    assert (outcome.step, outcome.steps, outcome.stopped_by) == (8, 8, 15)
    assert_same_end(tmp_path, whole)


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(
    arguments: list[str], whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(arguments, tmp_path, watch=at_step(7, lambda: signal.raise_signal(signal.SIGTERM)))
    damage(tmp_path / files.CHECKPOINTS / "7")
    with caplog.at_level(logging.WARNING, "occinv"):
        run(arguments, tmp_path)
    assert "checkpoint 7 is damaged" in caplog.text
    assert "using 6" in caplog.text
    assert (tmp_path / files.CHECKPOINTS / "7.damaged").is_dir()
    assert_same_end(tmp_path, whole)


def test_a_run_never_starts_anew_in_silence(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(arguments, tmp_path, watch=at_step(5, lambda: signal.raise_signal(signal.SIGTERM)))
    for step in (tmp_path / files.CHECKPOINTS).iterdir():
        damage(step)
    assert cli.main(["train", *arguments, "--workdir", str(tmp_path)]) == 2
    assert "no undamaged checkpoint" in capsys.readouterr().err


def damage(step: Path) -> None:
    """Turns a bit of the largest file of a checkpoint."""
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_finished_run_returns_at_once(arguments: list[str], whole: Path) -> None:
    def times() -> dict[str, int]:
        written = (p for p in whole.rglob("*") if p.is_file())
        written = (p for p in written if p.name not in (files.CONFIG, LOCK))
        return {str(path): path.stat().st_mtime_ns for path in written}

    before = times()
    outcome = run(arguments, whole, watch=lambda *_: pytest.fail("a step was taken"))
    assert (outcome.step, outcome.steps, outcome.stopped_by) == (8, 8, None)
    assert outcome.metrics == json.loads((whole / files.RESULT).read_text())["metrics"]
    assert times() == before


def test_a_kill_between_the_last_checkpoint_and_the_result(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    run(arguments, tmp_path)
    (tmp_path / files.RESULT).unlink()
    run(arguments, tmp_path, watch=lambda *_: pytest.fail("a step was taken"))
    assert_same_end(tmp_path, whole)


def test_free_fields_may_change_on_the_way(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    run(arguments, tmp_path, watch=at_step(4, lambda: signal.raise_signal(signal.SIGTERM)))
    changed = ("train.checkpoint_every.steps=3", "train.keep=1", "data.num_threads=1",
               "train.evaluate_every={'steps': 3}")  # fmt: skip
    run(arguments, tmp_path, *changed)
    assert_same_end(tmp_path, whole)
    evaluated = [
        line["step"] for line in read_scalars(tmp_path / files.METRICS) if "eval/loss" in line
    ]
    assert evaluated == [6, 8]


def test_a_run_goes_on_with_fewer_devices(
    arguments: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(arguments, tmp_path, watch=at_step(4, lambda: signal.raise_signal(signal.SIGTERM)))
    mesh = parallel.make_mesh(jax.devices()[:2])
    monkeypatch.setattr(parallel, "make_mesh", lambda fsdp: mesh)
    run(arguments, tmp_path)
    ours, theirs = losses(tmp_path), losses(whole)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-5)


def test_a_logged_loss_is_the_mean_since_the_last(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    run(arguments, tmp_path, "train.log_every.steps=3")
    each = losses(whole)
    expected = {3: (1, 2, 3), 6: (4, 5, 6), 8: (7, 8)}
    assert losses(tmp_path) == pytest.approx(
        {last: np.mean([each[step] for step in steps]) for last, steps in expected.items()}
    )


@pytest.mark.parametrize("stop", [signal.SIGTERM, None])
def test_a_logged_loss_covers_the_same_steps_after_a_restart(
    stop: signal.Signals | None, arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    """Saved at step 4 or 5, within the steps 4 to 6."""
    act = crash if stop is None else lambda: signal.raise_signal(stop)
    with contextlib.suppress(Crash):
        run(arguments, tmp_path, "train.log_every.steps=3", watch=at_step(5, act))
    run(arguments, tmp_path, "train.log_every.steps=3")
    each = losses(whole)
    assert losses(tmp_path)[6] == np.mean([each[4], each[5], each[6]])
    assert list(losses(tmp_path)) == [3, 6, 8]


def test_the_first_line_is_written_once(arguments: list[str], whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(arguments, tmp_path, watch=at_step(1, crash))  # before the first checkpoint
    run(arguments, tmp_path)
    assert steps_of(tmp_path) == steps_of(whole)
    assert tensorboard(tmp_path) == losses(whole)


@pytest.mark.parametrize("step", [3, 8])
def test_a_workdir_that_is_deleted_ends_the_run(
    step: int, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(RunFailed, match="run was deleted or moved while it was in use"):
        run(arguments, workdir, watch=at_step(step, lambda: shutil.rmtree(workdir)))
    assert not (workdir / files.RESULT).exists()


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_damaged_image_in_the_middle_fails_the_run_and_a_repair_continues_it(
    part: str,
    arguments: list[str],
    whole: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The image is in the third batch, or in an evaluation after the fifth step."""
    shutil.copytree(images, tmp_path / "images")
    source = open_folder(str(tmp_path / "images"), train=part == "train")
    number = sample_indices(0, 24, 23, 1)[0] if part == "train" else 11
    damaged = tmp_path / "images" / part / source.names[number]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:200] + bytes(len(content) - 200))
    folder = f"data.source=folder:{tmp_path / 'images'}"
    given = [*arguments, *overrides(folder, "train.evaluate_every.steps=5")]
    command = ["train", *given, "--workdir", str(tmp_path / "run")]
    assert cli.main(command) == 1
    step, error = (2 if part == "train" else 5), capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("occinv: ")]
    assert str(damaged) in line and "raise data.max_corrupt=0 to skip them" in line
    assert line.endswith("Run the same command to continue.")
    assert files.load_run(tmp_path / "run").step == step
    damaged.write_bytes(content)
    assert cli.main(command) == 0
    assert losses(tmp_path / "run") == losses(whole)


def test_a_workdir_has_one_training(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []

    def second() -> None:
        said.append(cli.main(["train", *arguments, "--workdir", str(tmp_path)]))
        command = ["evaluate", "knn", "--workdir", str(tmp_path)]
        said.append(cli.main(command))

    run(arguments, tmp_path, watch=at_step(5, second))
    assert said == [2, 2]
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if "is in use by process" in line]
    assert len(lines) == 2 and "--workdir" in lines[0] and "--out" in lines[1]
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("content", ["", '{"step": 8, "metr', '{"step": 8, "metrics": {}}'])
def test_a_result_that_cannot_be_believed_is_computed_again(
    content: str, arguments: list[str], whole: Path, tmp_path: Path, caplog
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / files.RESULT).write_text(content)
    (tmp_path / "run" / files.CHECKPOINTS / "2").mkdir()  # a kill before it was deleted
    with caplog.at_level(logging.WARNING, "occinv"):
        run(arguments, tmp_path / "run")
    assert f"{files.RESULT}" in caplog.text
    assert_same_end(tmp_path / "run", whole)
    kept = sorted(path.name for path in (tmp_path / "run" / files.CHECKPOINTS).iterdir())
    assert kept == sorted(path.name for path in (whole / files.CHECKPOINTS).iterdir())


def test_accumulated_parts_are_the_whole_batch(arguments: list[str], tmp_path: Path) -> None:
    monitors = "train.monitors=['norms', 'noise_scale']"
    for name, *fields in (("whole",), ("parts", "train.accumulate=2", monitors)):
        run(arguments, tmp_path / name, "train.batch_size=16", *fields)
    in_parts, at_once = losses(tmp_path / "parts"), losses(tmp_path / "whole")
    np.testing.assert_allclose(list(in_parts.values()), list(at_once.values()), rtol=1e-5)
    lines = read_scalars(tmp_path / "parts" / files.METRICS)
    last = [line for line in lines if "loss" in line][-1]
    assert {"gradient_norm/encoder/scale", "update_norm/head/kernel"} <= last.keys()
    scale = last["gradient_noise"] / last["gradient_signal"]
    assert last["noise_scale"] == pytest.approx(scale if last["gradient_signal"] > 0 else math.inf)


def test_another_seed_is_another_run(arguments: list[str], whole: Path, tmp_path: Path) -> None:
    run(arguments, tmp_path, "seed=1")
    assert not set(losses(tmp_path).values()) & set(losses(whole).values())


def test_every_step_draws_anew(arguments: list[str], images: Path, tmp_path: Path) -> None:
    """One image, always whole, and nothing learned: only the keys tell the steps apart."""
    (tmp_path / "one").mkdir()
    shutil.copy(images / "train" / "dark" / "00.png", tmp_path / "one")
    fields = (f"data.source=folder:{tmp_path / 'one'}", "data.flip=False", "optimizer.base_lr=0",
              "data.crop_scale=(1, 1)")  # fmt: skip
    run(arguments, tmp_path / "run", *fields)
    assert len(set(losses(tmp_path / "run").values())) == 8


def test_a_run_starts_from_the_encoder_of_another(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    fields = (f"init_from={whole}", "seed=5", "optimizer.base_lr=0.0", "train.duration.steps=2")
    run(arguments, tmp_path, *fields)
    ours, theirs = files.load_run(tmp_path).params, files.load_run(whole).params
    np.testing.assert_array_equal(ours["encoder"]["scale"], theirs["encoder"]["scale"])
    assert (ours["head"]["kernel"] != theirs["head"]["kernel"]).all()
    same, other = os.path.relpath(whole), whole.parent / "other"
    assert run(arguments, tmp_path, *fields, f"init_from={same}").step == 2
    shutil.copytree(whole, other)
    with pytest.raises(schema.UserError, match=r"holds a run with init_from=.*other"):
        run(arguments, tmp_path, *fields, f"init_from={other}")


def test_a_run_goes_on_with_its_images_named_in_another_way(
    arguments: list[str], images: Path, tmp_path: Path
) -> None:
    run(arguments, tmp_path / "run", f"data.source=folder:{images}")
    run(arguments, tmp_path / "run", f"data.source=folder:{os.path.relpath(images)}")
    for other in (f"folder:{images.parent}", f"arrow:{images}"):
        stored = files.read_config(tmp_path / "run").experiment
        data = dataclasses.replace(stored.data, source=other)
        with pytest.raises(schema.UserError, match=r"holds a run with data\.source="):
            files.check_same(tmp_path / "run", dataclasses.replace(stored, data=data))


def test_a_run_without_validation_images_says_so_once(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = f"{toy_config(tmp_path)}:{images / 'train'}"
    with caplog.at_level("WARNING", "occinv.train"):
        run(["--config", spec, *overrides(*OFTEN)], tmp_path / "run")
    assert caplog.text.count("has no validation images") == 1
    result = files.read_result(tmp_path / "run")
    assert (result["step"], result["metrics"], "images" in result) == (8, {}, False)


def test_a_run_that_stops_early_is_the_start_of_a_longer_one(
    arguments: list[str], whole: Path, tmp_path: Path
) -> None:
    """The schedules are those of the whole duration."""
    workdir = tmp_path / "stopped"
    outcome = run([*arguments, *overrides("train.stop_after.steps=5")], workdir)
    assert (outcome.step, outcome.steps) == (5, 5)
    start_of_whole = [
        (line["step"], line["loss"], line["learning_rate"])
        for line in read_scalars(whole / files.METRICS)
        if "loss" in line and line["step"] <= 5
    ]
    found = [
        (line["step"], line["loss"], line["learning_rate"])
        for line in read_scalars(workdir / files.METRICS)
        if "loss" in line
    ]
    assert found == start_of_whole and len(found) == 5
    assert (workdir / files.RESULT).exists()


@pytest.mark.parametrize("steps", [0, 9])
def test_an_end_outside_the_run_is_refused(
    arguments: list[str], tmp_path: Path, steps: int
) -> None:
    message = rf"train.stop_after={steps} steps is {steps} steps, expected 1 to 8"
    with pytest.raises(schema.UserError, match=message):
        run([*arguments, *overrides(f"train.stop_after.steps={steps}")], tmp_path / "run")
