"""Evaluators during training, by `config.evals`."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import (
    HEADS,
    Crash,
    at_step,
    crash,
    losses,
    overrides,
    run,
    start_several,
    state_of,
    tiny,
)

from occinv import cli
from occinv.evaluate import evaluate
from occinv.evaluators.base import Evaluator, Result
from occinv.schema import UserError
from occinv.train import workdir as files
from occinv.train.disk import RunFailed
from occinv.train.records import read_records
from occinv.train.writers import read_scalars

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once

STEPS = ("train.duration.steps=5", "train.checkpoint_every.steps=2")
KNN = "evals.knn={'every': {'steps': 2}, 'neighbors': 3}"
EVERY_TWO = {"every": {"steps": 2}}
RECONSTRUCTIONS = "evals.reconstructions={'num_images': 2}"


@pytest.fixture(scope="module")
def arguments(images: Path) -> list[str]:
    return tiny("mae", images, *STEPS)


@pytest.fixture(scope="module")
def measured(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run of five steps with two evaluators."""
    workdir = tmp_path_factory.mktemp("measured") / "run"
    run(arguments, workdir, KNN, RECONSTRUCTIONS)
    return workdir


def logged(workdir: Path, name: str = "knn/top1") -> dict[int, float]:
    """A number by step; a step that stands twice in the file fails."""
    lines = [line for line in read_scalars(workdir / files.METRICS) if name in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line[name] for line in lines}


def records(workdir: Path) -> dict[str, Any]:
    """The only record of each evaluator, by name."""
    paths = (workdir / "evaluate").glob("*.json")
    return {path.stem: record for path in paths for (record,) in [read_records(path)]}


def test_evaluators_run_at_their_interval_and_at_the_end(measured: Path) -> None:
    assert list(logged(measured)) == list(logged(measured, "knn/top5")) == [2, 4, 5]
    assert set(records(measured)) == {"knn", "reconstructions"}
    record = records(measured)["knn"]
    assert record.step == 5 and record.protocol["neighbors"] == 3
    assert record.values["top1"] == logged(measured)[5]
    assert (measured / "evaluate" / "reconstructions.png").is_file()
    assert len(list((measured / "evaluate" / "reconstructions").iterdir())) == 6
    events = b"".join(path.read_bytes() for path in measured.glob("events.out.tfevents*"))
    for tag in (b"knn/top1", b"reconstructions/original", b"reconstructions/masked"):
        assert tag in events


def test_the_records_are_those_of_the_command_afterwards(measured: Path, tmp_path: Path) -> None:
    for name, options in (("knn", {"neighbors": 3}), ("reconstructions", {"num_images": 2})):
        record = records(measured)[name]
        out = tmp_path / f"{name}.json"
        (after,) = evaluate(name, [measured], out=out, **options)
        assert after.record.making == record.making
        assert after.record.values == pytest.approx(record.values)
        (read,) = read_records(out)
        assert read == record
    for path in (measured / "evaluate" / "reconstructions").iterdir():
        assert path.read_bytes() == (tmp_path / "reconstructions" / path.name).read_bytes()


def test_an_evaluator_may_have_several_entries(arguments: list[str], tmp_path: Path) -> None:
    nearest = "evals.nearest={'name': 'knn', 'neighbors': 1, 'every': {'steps': 4}}"
    run(arguments, tmp_path, KNN, nearest)
    assert list(logged(tmp_path, "nearest/top1")) == [4, 5]
    assert list(logged(tmp_path)) == [2, 4, 5]
    found = records(tmp_path)
    assert found.keys() == {"knn", "nearest"}
    assert [found[n].protocol["neighbors"] for n in ("knn", "nearest")] == [3, 1]
    assert {record.evaluator for record in found.values()} == {"knn"}


def test_training_is_the_same_without_evaluators(
    arguments: list[str], measured: Path, tmp_path: Path
) -> None:
    run(arguments, tmp_path)
    assert losses(tmp_path) == losses(measured)
    found, expected = state_of(tmp_path), state_of(measured)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert not (tmp_path / "evaluate").exists()


def test_evaluators_may_change_when_a_run_resumes(
    arguments: list[str], measured: Path, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        run(arguments, tmp_path, "evals.knn={'neighbors': 5}", watch=at_step(3, crash))
    assert not logged(tmp_path) and not (tmp_path / "evaluate").exists()
    run(arguments, tmp_path, KNN)
    assert logged(tmp_path) == {step: logged(measured)[step] for step in (4, 5)}
    assert records(tmp_path)["knn"].values == records(measured)["knn"].values
    assert losses(tmp_path) == losses(measured)


@pytest.mark.parametrize("step", [3, 5])
def test_a_crash_writes_no_number_twice(
    step: int, arguments: list[str], measured: Path, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        run(arguments, tmp_path, KNN, watch=at_step(step, crash))
    run(arguments, tmp_path, KNN)
    assert logged(tmp_path) == logged(measured)
    # Killed after the last checkpoint, before the result and perhaps before the records.
    (tmp_path / files.RESULT).unlink()
    (tmp_path / "evaluate" / "knn.json").unlink()
    run(arguments, tmp_path, KNN, watch=lambda *_: pytest.fail("a step was taken"))
    assert logged(tmp_path) == logged(measured)
    assert records(tmp_path)["knn"].values == records(measured)["knn"].values


class Failing(Evaluator):
    """Cannot read an image."""

    def measure(self, subject: Any, images: Any) -> Result:
        raise UserError("cannot read image 3")


def test_an_evaluator_that_fails_costs_no_step(arguments: list[str], tmp_path: Path) -> None:
    rare = "train.checkpoint_every.steps=100"
    with pytest.raises(RunFailed, match=r"cannot read image 3\. Run the same command"):
        run(arguments, tmp_path, rare, f"evals={{'{__name__}:Failing': {EVERY_TWO}}}")
    assert files.load_run(tmp_path).step == 2
    run(arguments, tmp_path, rare, "evals={}")
    assert min(losses(tmp_path)) == 1 and max(losses(tmp_path)) == 5


class Slow(Evaluator):
    """Takes four seconds."""

    def measure(self, subject: Any, images: Any) -> Result:
        time.sleep(4)
        return Result({"steps": 1.0}, "")


def test_the_time_of_evaluators_is_not_that_of_training(
    arguments: list[str], tmp_path: Path
) -> None:
    run(arguments, tmp_path, "train.duration.steps=4", f"evals={{'{__name__}:Slow': {EVERY_TWO}}}")
    rates = logged(tmp_path, "images_per_second")
    assert list(logged(tmp_path, f"{__name__}:Slow/steps")) == [2, 4]
    assert rates[3] > 2  # 8 images in less than the 4 seconds of the evaluator


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        ("mae", ["evals.knnn={}"], "unknown evaluator 'knnn' (did you mean 'knn'?)"),
        ("mae", ["evals.near={'name': 'kn'}"], "unknown evaluator 'kn' (did you mean 'knn'?)"),
        ("mae", ["evals.knn={'neighbours': 3}"], "unknown field 'evals.knn.neighbours'"),
        ("mae", ["evals.knn={'neighbors': 0}"], "evals.knn.neighbors=0, expected a number >= 1"),
        ("mae", ["evals.knn={'neighbors': 99}"], "neighbors=99, expected 1 to "),
        ("mae", ["evals.knn={'every': {'hours': 1}}"], "unknown field 'evals.knn.every.hours'"),
        ("mae", ["evals.knn={'every': {}}"], "evals.knn.every has no length"),
        ("mae", ["evals.knn={'source': 'digts'}"], "did you mean 'digits'"),
        ("mae", ["evals.knn={'num_images': 13}"], "13 images requested, expected 1 to 12"),
        ("mae", ["evals.invariance={'ratios': (2.0,)}"], "ratios[0]=2.0, expected a number < 1"),
        (
            "mae",
            ["evals.invariance={'removed': 'mask_token', 'ratios': (0.5,)}"],
            "without a mask token",
        ),
        ("mae", ["evals.attention={'block': 2}"], "block=2, expected 1 to 1"),
        ("mae", ["evals=3"], "evals=3"),
        ("cmae", ["evals.psnr={}", *HEADS], "CMAE does not reconstruct"),
        ("finetune", ["evals.reconstructions={}"], "Classification does not reconstruct"),
        ("mocov3", ["evals.psnr={}"], "MoCoV3 does not reconstruct"),
    ],
)
def test_a_mistake_is_refused_before_the_first_step(
    config: str,
    fields: list[str],
    message: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workdir = tmp_path / "run"
    command = ["train", *tiny(config, images, *STEPS, *fields), "--workdir", str(workdir)]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("occinv: ") and message in said and said.count("\n") == 1, said
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("train", "probe", "a probe needs validation images"),
        ("train/dark", "knn", "has no labels, but this evaluator needs classes"),
        ("train/dark", "occlusion", "has no labels"),
    ],
)
def test_images_that_cannot_be_measured_are_refused_before_the_first_step(
    part: str, name: str, message: str, images: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=message):
        run(tiny("mae", images / part, *STEPS), workdir, f"evals.{name}={{}}")
    assert not workdir.exists()


def test_a_file_of_other_content_is_an_error_before_the_first_step(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "knn.json").write_text('{"models": []}')
    with pytest.raises(UserError, match=r"knn.json has no records of this version"):
        run(arguments, tmp_path, KNN)
    shutil.rmtree(tmp_path / "evaluate")
    (tmp_path / "evaluate").touch()
    with pytest.raises(UserError, match=r"evaluate is a file, expected a folder"):
        run(arguments, tmp_path, KNN)
    assert [path.name for path in tmp_path.iterdir()] == ["evaluate"]


def test_several_processes_find_the_same(
    arguments: list[str], measured: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "two"
    others: dict[str, dict[str, Any]] = {
        "psnr": {},
        "invariance": {"ratios": (0.5,), "untrained": 0},  # and the blind encoder
        "occlusion": {"ratios": (0.5,), "neighbors": 3, "removals": ("random", "salient")},
    }
    for options in others.values():
        options["batch_size"] = 16
    fields = overrides(KNN, RECONSTRUCTIONS, *(f"evals.{n}={o}" for n, o in others.items()))
    processes = start_several(2, ["train", *arguments, *fields, "--workdir", str(workdir)])
    outcomes = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    assert logged(workdir) == pytest.approx(logged(measured))
    found, expected = records(workdir), records(measured)
    assert found["knn"].values == pytest.approx(expected["knn"].values)
    assert found["knn"].making == expected["knn"].making
    for name, options in others.items():
        (after,) = evaluate(name, [workdir], out=tmp_path / f"{name}.json", **options)
        assert found[name].making == after.record.making
        assert found[name].values == pytest.approx(after.record.values, abs=1e-3)
    assert len(list((workdir / "evaluate" / "reconstructions").iterdir())) == 6


def test_the_result_says_which_images_were_measured(measured: Path, images: Path) -> None:
    found = json.loads((measured / files.RESULT).read_text())["images"]
    assert found["name"] == f"folder:{images / 'val'}"
    assert (found["count"], found["split"]) == (12, "validation")
    assert found == json.loads((measured / "evaluate" / "knn.json").read_text())[0]["images"]
