"""Tables that are killed, stopped, shared by workers, or have a row that fails."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import ENCODER, HEADS, make_images, start, start_several

from occinv.cli import main
from occinv.progress import Progress
from occinv.reproduce import work
from occinv.reproduce.collect import mean_curves, values
from occinv.reproduce.lock import locked
from occinv.reproduce.tables import make_table
from occinv.reproduce.trial import Plan, Trial, added, trials_of
from occinv.reproduce.work import Share, Stopped
from occinv.schema import UserError
from occinv.train.loop import NonFinite, Outcome
from occinv.train.workdir import CONFIG, METRICS, RESULT, as_json, write_json

TABLE = ["reproduce", "table3", "--scale", "smoke", "--workdir", "runs"]
ROWS = ["cmae_class", "cmae_mean"]


@pytest.fixture(autouse=True)
def no_cache_afterwards() -> Any:
    """`reproduce` points JAX's compilation cache into its workdir."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two rows of Table 3, as small as can be."""
    images = make_images(tmp_path_factory.mktemp("data") / "images")
    every = ("data.image_size=16", f"data.source=folder:{images}", "train.batch_size=8", *ENCODER)
    return [
        *TABLE,
        *("--rows", ",".join(ROWS)),
        *(f"--config.{field}" for field in (*every, "train.log_every.steps=1")),
        *(f"--pretrain.{field}" for field in (*HEADS, "objective.symmetric=False")),
        "--pretrain.train.checkpoint_every.steps=2",
    ]


def ended(process: subprocess.Popen[str]) -> str:
    """What a process that must succeed has printed."""
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
    """The folder in which nothing disturbed the table."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shown = ended(start(arguments))
    assert "mean of patch tokens" in shown
    assert (folder / "runs" / "table3" / "report.html").is_file()
    return folder


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def beside(whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in that has the whole one's compiled programs, which saves a minute."""
    shutil.copytree(whole / "runs" / "compiled", folder / "runs" / "compiled")
    monkeypatch.chdir(folder)
    return folder


def test_killed_twice(
    whole: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = beside(whole, tmp_path, monkeypatch)
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
    folder = beside(whole, tmp_path, monkeypatch)
    workers = [start([*arguments, "--jobs", number, "of", "2"]) for number in "12"]
    shown = [ended(worker) for worker in workers]
    assert table(folder) == table(whole)
    for row in ROWS:  # each trained by one of them
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
    monkeypatch.setattr(work, "train", lambda *_: pytest.fail("a training was begun"))
    assert main(arguments) == 0
    assert trained() == before


def test_another_plan_in_the_same_folder_is_refused(
    whole: Path,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Else finished rows of one plan would stand in the table of another."""
    monkeypatch.chdir(whole)
    before = (whole / "runs" / "table3" / "results.json").read_text()
    assert main([*arguments, "--length", "2"]) == 2
    shown = capsys.readouterr().err
    assert "seed0/pretrain holds a run with" in shown
    assert "train.duration.steps=8 (now 16)" in shown
    assert (whole / "runs" / "table3" / "results.json").read_text() == before


def test_a_row_more_of_an_encoder_that_is_there(
    whole: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    row = added("My encoder=runs/runs/cmae_mean/seed0/pretrain")
    assert row.key == "my_encoder"
    trial = Trial(row.method, 0, Plan(make_table("table3", "smoke"), Path("runs"), "smoke"))  # type: ignore[arg-type]
    assert list(trial.stages) == ["finetune"]
    start = "runs/runs/cmae_mean/seed0/pretrain"
    assert trial.stage("finetune").experiment.init_from == start
    monkeypatch.setattr(work, "train", lambda *_: Outcome(3, 8, {}, int(signal.SIGTERM)))
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
def test_a_row_more_of_nothing(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        added(spec)


# What follows trains nothing.


def smoke(workdir: Path, key: str = "table3") -> Plan:
    return Plan(make_table(key, "smoke"), workdir, "smoke")


def pretended(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], None] | None = None
) -> list[Path]:
    """Replaces training by a result that says where it was: the workdirs, in order."""
    begun: list[Path] = []

    def train(experiment: Any, workdir: Path, watch: Any) -> Outcome:
        begun.append(workdir)
        if act is not None:
            act(workdir)
        write_json(workdir / CONFIG, {"experiment": as_json(experiment), "classes": []})
        write_json(workdir / RESULT, {"step": 8, "metrics": {"top1": 0.25}})
        return Outcome(8, 8, {}, None)

    monkeypatch.setattr(work, "train", train)
    return begun


def test_a_worker_begins_with_its_own_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = pretended(monkeypatch)
    plan = smoke(tmp_path)
    rows = plan.table.rows
    assert work.reproduce(plan, rows, 2, "command", Share(2, 4)) == 0
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


def test_what_another_worker_holds_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = pretended(monkeypatch)
    plan = smoke(tmp_path)
    held = trials_of(plan, plan.table.rows, 1)[1]
    with locked(held.folder / ".lock") as is_held:
        assert is_held
        assert work.reproduce(plan, plan.table.rows, 1, "command") == 0
    assert "1 left to other workers: cmae_mean" in capsys.readouterr().out
    assert not any(held.folder in path.parents for path in begun)
    rows = json.loads((tmp_path / "table3" / "results.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["done", "running", "done", "done"]
    assert work.reproduce(plan, plan.table.rows, 1, "command") == 0  # the other was killed
    assert begun[-1] == held.folder / "finetune"


def test_a_lock_is_held_once_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / ".lock"
    with locked(path) as first, locked(path) as second:
        assert (first, second) == (True, False)
    with locked(path) as third:
        assert third


def test_a_stop_is_handed_on_after_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(work, "train", lambda *_: Outcome(3, 8, {}, int(signal.SIGTERM)))
    workdir = tmp_path / "runs"
    assert main(["reproduce", "quickstart", "--workdir", str(workdir)]) == 143
    assert "run the same command to go on" in capsys.readouterr().out
    assert (workdir / "report.html").is_file()
    with locked(workdir / "runs" / "random" / "seed0" / ".lock") as is_free:
        assert is_free


def test_a_row_that_fails_is_said_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(workdir: Path) -> None:
        if "cmae_mean" in workdir.parts:
            raise NonFinite("loss or gradient not finite")

    begun = pretended(monkeypatch, explode)
    plan = smoke(tmp_path)
    assert work.reproduce(plan, plan.table.rows, 1, "command") == 1
    assert len(begun) == 2 * 4 - 1  # its fine-tuning was not tried
    rows = json.loads((tmp_path / "table3" / "results.json").read_text())["rows"]
    assert [row["status"] for row in rows] == ["done", "failed", "done", "done"]
    assert rows[1]["error"] == "loss or gradient not finite"
    assert "loss or gradient not finite" in capsys.readouterr().out
    pretended(monkeypatch)  # mended
    assert work.reproduce(plan, plan.table.rows, 1, "command") == 0


def test_progress_counts_the_whole_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of trials that are there, that go on from the middle, and that are new."""
    plan = smoke(tmp_path)
    trial = trials_of(plan, plan.table.rows, 1)[0]

    def train(experiment: Any, workdir: Path, watch: Callable[..., None]) -> Outcome:
        if not (workdir / RESULT).exists():
            for step in range(3, 9):
                watch(step, 8, None)
            write_json(workdir / CONFIG, {"experiment": as_json(experiment), "classes": []})
            write_json(workdir / RESULT, {"step": 8, "metrics": {}})
        return Outcome(8, 8, {}, None)

    monkeypatch.setattr(work, "train", train)
    for missing in ("pretrain", "finetune", None):
        if missing:
            (trial.stages[missing].workdir / RESULT).unlink(missing_ok=True)
        with Progress(total=trial.cost) as progress:
            assert work.take(trial, progress)
            (everything,) = progress._bars.tasks
            assert everything.completed == pytest.approx(trial.cost)


def test_a_stop_at_the_last_step_of_a_run_begins_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []

    def train(experiment: Any, workdir: Path, watch: Any) -> Outcome:
        begun.append(workdir)
        return Outcome(8, 8, {}, int(signal.SIGTERM))

    monkeypatch.setattr(work, "train", train)
    plan = smoke(tmp_path)
    trial = trials_of(plan, plan.table.rows, 1)[0]
    with Progress() as progress, pytest.raises(Stopped):
        work.run(trial, progress)
    assert begun == [trial.stages["pretrain"].workdir]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["3", "of", "2"], "--jobs 3 of 2, expected 1 to 2"),
        (["0", "of", "2"], "--jobs 0 of 2, expected 1 to 2"),
        (["1", "in", "2"], "--jobs 1 in 2, expected K of N"),
        (["a", "of", "2"], "--jobs a of 2, expected K of N"),
    ],
)
def test_shares_that_are_not(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Share.parse(words)
    assert Share.parse(["2", "of", "4"]) == Share(2, 4)


def test_values_of_seeds_stay_in_step(tmp_path: Path) -> None:
    """A seed that is missing hides those after it, so that differences pair equal seeds."""
    plan = smoke(tmp_path)
    trials = [Trial(plan.table.rows[0].method, seed, plan) for seed in range(3)]  # type: ignore[arg-type]
    for trial, top1 in ((trials[0], 0.5), (trials[2], 0.7)):
        folder = trial.stages["finetune"].workdir
        folder.mkdir(parents=True)
        write_json(folder / RESULT, {"step": 8, "metrics": {"top1": top1}})
    assert values(trials)["finetune"] == [0.5]


def test_curves_are_averaged_over_seeds() -> None:
    models = [
        {"ratios": [0.1, 0.9], "blocks": [1], "values": [[0.8, 0.2]]},
        {"ratios": [0.1, 0.9], "blocks": [1], "values": [[1.0, 0.6]]},
    ]
    curves = mean_curves(models)
    assert curves is not None
    np.testing.assert_allclose(curves["values"], [[0.9, 0.4]])
    assert curves["by_seed"] == [[[0.8, 0.2]], [[1.0, 0.6]]]
    assert curves["ratios"] == [0.1, 0.9]
    assert mean_curves([]) is None
