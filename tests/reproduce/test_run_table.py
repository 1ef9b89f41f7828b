"""Tables that are killed, stopped, shared by several workers, or have a failing row."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from forked import Forked
from tiny_runs import ENCODER, HEADS, make_images, start, start_several

from occinv.cli import main
from occinv.data.identity import Images
from occinv.evaluators.base import Record
from occinv.progress import Progress
from occinv.report.measured import curves_of
from occinv.reproduce import run_table
from occinv.reproduce.collect import read_values
from occinv.reproduce.options import Worker, parse_added_row, parse_jobs
from occinv.reproduce.run import TableRun, Trial
from occinv.reproduce.run_table import Stopped, Written, reproduce, run_all, run_trial, take_trial
from occinv.reproduce.tables import make_table
from occinv.schema import UserError
from occinv.train.disk import write_json
from occinv.train.lock import locked
from occinv.train.loop import NonFinite, Outcome
from occinv.train.workdir import CONFIG, METRICS, RESULT, as_json

TABLE = ["reproduce", "table3", "--scale", "smoke", "--workdir", "runs"]
ROWS = ["cmae_class", "cmae_mean"]


@pytest.fixture(autouse=True)
def no_cache_afterwards() -> Any:
    """`reproduce` sets JAX's compilation cache to a folder in its workdir."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments for two small rows of Table 3."""
    images = make_images(tmp_path_factory.mktemp("data") / "images")
    every = ("data.image_size=16", f"data.source=folder:{images}", "train.batch_size=8", *ENCODER)
    return [
        *TABLE,
        *("--rows", ",".join(ROWS)),
        *(f"--config.{field}" for field in (*every, "train.log_every.steps=1")),
        *(f"--pretrain.{field}" for field in (*HEADS, "objective.symmetric=False")),
        "--pretrain.train.checkpoint_every.steps=2",
    ]


def ended(process: Forked) -> str:
    """Wait for a process to succeed, and return its output."""
    shown, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return shown


def table(folder: Path, name: str = "table3") -> dict[str, Any]:
    """The results in a folder, without times and the typed command."""
    results = json.loads((folder / "runs" / name / "results.json").read_text())
    for name in ("created", "seconds", "command"):
        del results[name]
    for row in results["rows"]:
        for run in ("pretrain", "finetune"):
            (row[run] or {}).pop("seconds", None)
    return results


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a table that ran without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shown = ended(start(arguments))
    assert "mean of patch" in shown  # the name may be wrapped
    assert (folder / "runs" / "table3" / "report.html").is_file()
    return folder


def wait_for(path: Path, process: Forked) -> None:
    for _ in range(2400):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def copy_compiled(whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with the compiled programs of `whole`, which saves a minute."""
    shutil.copytree(whole / "runs" / "compiled", folder / "runs" / "compiled")
    monkeypatch.chdir(folder)
    return folder


def test_killed_twice(
    whole: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_compiled(whole, tmp_path, monkeypatch)
    row = folder / "runs" / "runs" / ROWS[0] / "seed0"
    command = [word.replace(",".join(ROWS), ROWS[0]) for word in arguments]
    for path in ("pretrain/checkpoints/2", "finetune/config.json"):
        process = start(command)
        wait_for(row / path, process)
        process.kill()
        process.communicate()
    ended(start(command))
    assert table(folder)["rows"] == table(whole)["rows"][:1]


def test_two_workers_at_once(
    whole: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_compiled(whole, tmp_path, monkeypatch)
    workers = [start([*arguments, "--jobs", number, "of", "2"]) for number in "12"]
    shown = [ended(worker) for worker in workers]
    assert table(folder) == table(whole)
    for row in ROWS:  # one of the workers trained it
        assert sorted(f"{row}, pretraining: step 8" in text for text in shown) == [False, True]


def test_on_two_processes_it_is_the_table_of_one(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = {"table3": "table2", ",".join(ROWS): "random"}
    command = [others.get(word, word) for word in arguments]
    first, second = start_several(2, command)
    assert "Random init" in ended(first) and "Random init" not in ended(second)
    several = table(tmp_path, "table2")["rows"][0]
    shutil.rmtree(tmp_path / "runs")
    assert main(command) == 0
    alone = table(tmp_path, "table2")["rows"][0]
    assert several["values"] == alone["values"]
    np.testing.assert_allclose(
        several["finetune"]["loss"], alone["finetune"]["loss"], rtol=1e-4, atol=0
    )


def test_a_finished_table_runs_nothing(
    whole: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> dict[str, int]:
        found = [path for name in (METRICS, RESULT) for path in whole.rglob(name)]
        return {str(path): path.stat().st_mtime_ns for path in found}

    before = trained()
    assert len(before) == 2 * 2 * len(ROWS)
    monkeypatch.chdir(whole)
    monkeypatch.setattr(run_table, "train", lambda *_: pytest.fail("a training was begun"))
    assert main(arguments) == 0
    assert trained() == before


def test_another_experiment_in_the_same_folder_is_refused(
    whole: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Otherwise the table would mix finished rows of two experiments."""
    monkeypatch.chdir(whole)
    before = (whole / "runs" / "table3" / "results.json").read_text()
    assert main([*arguments, "--length", "2"]) == 2
    shown = capsys.readouterr().err
    assert "seed0/pretrain holds a run with" in shown
    assert "train.duration.steps=8 (now 16)" in shown
    assert (whole / "runs" / "table3" / "results.json").read_text() == before


def test_add_makes_a_row_for_an_existing_encoder(
    whole: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    row = parse_added_row("My encoder=runs/runs/cmae_mean/seed0/pretrain")
    assert row.key == "my_encoder"
    trial = Trial(row.method, 0, smoke(Path("runs")))  # type: ignore[arg-type]
    assert list(trial.stages) == ["finetune"]
    start = "runs/runs/cmae_mean/seed0/pretrain"
    assert trial.stage("finetune").experiment.init_from == start
    monkeypatch.setattr(run_table, "train", lambda *_: Outcome(3, 8, {}, int(signal.SIGTERM)))
    assert main([*arguments, "--add", f"My encoder={start}"]) == 143
    results = json.loads(Path("runs/table3/results.json").read_text())
    mine = results["rows"][-1]
    assert (mine["name"], mine["status"]) == ("My encoder", "running")
    assert (mine["target"], mine["t1"]) == ("EMA encoder", "75% removed, color")
    assert mine["pretrain"]["loss"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [("mine", "--add 'mine', expected NAME=WORKDIR"), ("mine=nowhere", "nowhere")],
)
def test_invalid_additions_are_refused(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_added_row(spec)


# The tests below train nothing.


def smoke(workdir: Path, seeds: int = 1) -> TableRun:
    table = make_table("table3", "smoke")
    return TableRun(table, table.rows, workdir, "smoke", seeds, command="command")


def fake_training(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None] | None = None
) -> list[Path]:
    """Replace training by writing a result, and return the workdirs in order."""
    begun: list[Path] = []

    def train(experiment: Any, workdir: Path, watch: Any) -> Outcome:
        begun.append(workdir)
        if act is not None:
            act(workdir)
        write_json(workdir / CONFIG, {"experiment": as_json(experiment), "classes": []})
        write_json(workdir / RESULT, {"step": 8, "metrics": {"top1": 0.25}})
        return Outcome(8, 8, {}, None)

    monkeypatch.setattr(run_table, "train", train)
    return begun


def test_jobs_chooses_the_first_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = fake_training(monkeypatch)
    assert reproduce(smoke(tmp_path, seeds=2), Worker(2, 4)) == 0
    names = [path.relative_to(tmp_path / "runs").parts for path in begun]
    assert [name[:2] for name in names[::2]] == [
        ("cmae", "seed0"),
        ("cmae_both", "seed0"),
        ("cmae_class", "seed1"),
        ("cmae_mean", "seed1"),
        ("cmae", "seed1"),
        ("cmae_both", "seed1"),
        ("cmae_class", "seed0"),
        ("cmae_mean", "seed0"),
    ]
    results = json.loads((tmp_path / "table3" / "results.json").read_text())
    assert all(row["values"]["finetune"] == [0.25, 0.25] for row in results["rows"])
    assert not any(row["paper"] for row in results["rows"])  # a few steps compare with nothing


def test_a_locked_trial_is_left_to_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = fake_training(monkeypatch)
    run = smoke(tmp_path)
    held = run.trials[1]
    with locked(held.folder / ".lock") as is_held:
        assert is_held
        assert reproduce(run) == 0
    assert "other workers hold the last runs: cmae_mean" in capsys.readouterr().out
    assert not any(held.folder in path.parents for path in begun)
    rows = json.loads((tmp_path / "table3" / "results.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["done", "running", "done", "done"]
    assert reproduce(run) == 0  # as if the other worker was killed
    assert begun[-1] == held.folder / "finetune"


def test_a_lock_is_held_once_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ".lock"
    with locked(path) as first, locked(path) as second:
        assert (first, second) == (True, False)
    with locked(path) as third:
        assert third


def test_a_stopped_run_writes_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_table, "train", lambda *_: Outcome(3, 8, {}, int(signal.SIGTERM)))
    workdir = tmp_path / "runs"
    assert main(["reproduce", "quickstart", "--workdir", str(workdir)]) == 143
    assert "Run the same command to continue" in capsys.readouterr().out
    assert (workdir / "report.html").is_file()
    with locked(workdir / "runs" / "random" / "seed0" / ".lock") as is_free:
        assert is_free


def test_other_rows_continue_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(workdir: Path) -> None:
        if "cmae_mean" in workdir.parts:
            raise NonFinite("loss or gradient not finite")

    begun = fake_training(monkeypatch, explode)
    run = smoke(tmp_path)
    assert reproduce(run) == 1
    assert len(begun) == 2 * 4 - 1  # the failing row is not fine-tuned
    rows = json.loads((tmp_path / "table3" / "results.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["done", "failed", "done", "done"]
    assert rows[1]["error"] == "loss or gradient not finite"
    assert "loss or gradient not finite" in capsys.readouterr().out
    fake_training(monkeypatch)  # without the failure
    assert reproduce(run) == 0


def test_progress_counts_every_stage_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials are finished, resumed in the middle, or new."""
    run = smoke(tmp_path)
    trial = run.trials[0]

    def train(experiment: Any, workdir: Path, watch: Callable[..., None]) -> Outcome:
        if not (workdir / RESULT).exists():
            for step in range(3, 9):
                watch(step, 8, None)
            write_json(workdir / CONFIG, {"experiment": as_json(experiment), "classes": []})
            write_json(workdir / RESULT, {"step": 8, "metrics": {}})
        return Outcome(8, 8, {}, None)

    monkeypatch.setattr(run_table, "train", train)
    for missing in ("pretrain", "finetune", None):
        if missing:
            (trial.stages[missing].workdir / RESULT).unlink(missing_ok=True)
        with Progress(total=trial.cost) as progress:
            took = take_trial(trial, progress, "run 1 of 1")
            assert took == ("ran" if missing else "was done")
            (everything,) = progress._bars.tasks
            assert everything.completed == pytest.approx(trial.cost)


def test_trials_that_were_done_cost_no_report(tmp_path: Path) -> None:
    """The results of a hundred finished runs take seconds to read, each time."""
    trials: list[Any] = [SimpleNamespace(is_done=True, stages={}, cost=1.0) for _ in range(3)]
    reports: list[bool] = []

    def write_report(is_last: bool) -> Written:
        reports.append(is_last)
        return Written(True, tmp_path / "report.html")

    assert run_all(trials, tmp_path, write_report) == 0
    assert reports == [True]


def test_no_stage_starts_after_a_stop_at_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []

    def train(experiment: Any, workdir: Path, watch: Any) -> Outcome:
        begun.append(workdir)
        return Outcome(8, 8, {}, int(signal.SIGTERM))

    monkeypatch.setattr(run_table, "train", train)
    run = smoke(tmp_path)
    trial = run.trials[0]
    with Progress() as progress, pytest.raises(Stopped):
        run_trial(trial, progress)
    assert begun == [trial.stages["pretrain"].workdir]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["3", "of", "2"], "--jobs 3 of 2, expected 1 to 2"),
        (["0", "of", "2"], "--jobs 0 of 2, expected 1 to 2"),
        (["1", "in", "2"], "--jobs 1 in 2, expected K of N"),
        (["a", "of", "2"], "--jobs a of 2, expected K of N"),
        (["1", "of", "9" * 5000], "expected K of N"),
    ],
)
def test_jobs_that_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_jobs(words)
    assert parse_jobs(["2", "of", "4"]) == Worker(2, 4)


def test_values_of_seeds_stay_in_step(tmp_path: Path) -> None:
    """A missing seed hides later seeds, so that differences pair equal seeds."""
    run = smoke(tmp_path)
    trials = [Trial(run.rows[0].method, seed, run) for seed in range(3)]  # type: ignore[arg-type]
    for trial, top1 in ((trials[0], 0.5), (trials[2], 0.7)):
        folder = trial.stages["finetune"].workdir
        stored = {"experiment": as_json(trial.stages["finetune"].experiment), "classes": []}
        write_json(folder / CONFIG, {**stored, "run": folder.parent.name})
        result = {"step": 8, "metrics": {"top1": top1}, "run": folder.parent.name}
        write_json(folder / RESULT, result)
    assert read_values(trials)["finetune"] == [0.5]
    write_json(trials[0].stages["finetune"].workdir / RESULT, result)  # a copy
    with pytest.raises(UserError, match=r"seed0/.*/result\.json is the result of another run"):
        read_values(trials)


def test_curves_are_averaged_over_seeds() -> None:
    records = []
    for last in ([0.8, 0.2], [1.0, 0.6]):
        own = {"token": "class", "ratios": [0.1], "blocks": [1, 2], "cka": {"class": [last]}}
        floor = {"untrained 0": {"cka": {"class": [[0.1, last[1] / 2]]}}}
        images = Images("digits", 3, "d", "validation")
        details = own | {"floor": floor | {"blind": {"cka": {"class": [[0.9, 0.9]]}}}}
        made = ("invariance", "w", "mae", 3, images, {}, "0", {}, details)
        records.append(Record(*made))
    curves = curves_of(records)
    assert curves is not None
    np.testing.assert_allclose(curves.values, [[0.9, 0.4]])
    assert curves.by_seed == [[[0.8, 0.2]], [[1.0, 0.6]]]
    assert (curves.ratios, curves.token) == ([0.1], "class")
    assert curves.floor == [[0.1, 0.3]], "the highest of the untrained encoders"
    assert curves_of([]) is None
