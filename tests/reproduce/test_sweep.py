"""Sweeps: their settings, the names of runs, workers, and the report. Most tests train nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import overrides, toy_config

from occinv.cli import main
from occinv.evaluators.base import Evaluator, Result
from occinv.evaluators.knn import Knn
from occinv.report.sweep import FILE, Measured, SweepResults, choose_metric, plot_fields
from occinv.reproduce import run_table
from occinv.reproduce.options import Worker
from occinv.reproduce.sweep import Sweep, read_settings, run_sweep
from occinv.schema import UserError
from occinv.train.lock import locked
from occinv.train.loop import NonFinite, Outcome
from occinv.train.records import FOLDER, read_records
from occinv.train.workdir import CONFIG, METRICS, RESULT, as_json, write_json

RATES = {"optimizer.base_lr": [0.1, 1.0], "optimizer.weight_decay": [0.0, 0.05]}


@pytest.fixture(autouse=True)
def no_cache_afterwards() -> Any:
    """A sweep sets JAX's compilation cache to a folder in its workdir."""
    yield
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture
def config(images: Path, tmp_path: Path) -> str:
    return f"{toy_config(tmp_path)}:{images}"


def fake_training(
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Path], None] = lambda _: None,
    has_validation: bool = True,
) -> list[str]:
    """Replace training by a result that depends on the config, and return the begun folders."""
    begun: list[str] = []

    def train(experiment: Any, workdir: Path, watch: Any) -> Outcome:
        begun.append(workdir.name)
        act(workdir)
        loss = experiment.optimizer.base_lr + 0.01 * experiment.seed
        write_json(workdir / CONFIG, {"experiment": as_json(experiment), "classes": []})
        metrics = {"loss": loss} if has_validation else {}
        write_json(workdir / RESULT, {"step": 8, "metrics": metrics})
        line = {"step": 8, "time": 0.0, "loss": 2 * loss}
        (workdir / METRICS).write_text(f"{json.dumps(line)}\n")
        return Outcome(8, 8, {}, None)

    monkeypatch.setattr(run_table, "train", train)
    return begun


def test_a_mapping_is_a_product_and_a_list_is_not() -> None:
    product = read_settings(RATES)
    assert [tuple(setting.values()) for setting in product] == [
        *((0.1, 0.0), (0.1, 0.05), (1.0, 0.0), (1.0, 0.05))
    ]
    pairs = ({"train.batch_size": 8, "data.flip": False}, {"train.batch_size": 16})
    assert read_settings(pairs) == pairs


def test_set_is_a_factor_of_the_product() -> None:
    assert read_settings(None, ["a.b=0.5,0.75", "c=x,y"]) == (
        *({"a.b": 0.5, "c": "x"}, {"a.b": 0.5, "c": "y"}),
        *({"a.b": 0.75, "c": "x"}, {"a.b": 0.75, "c": "y"}),
    )
    assert read_settings([{"d": 1}], ["a=(0.2,1.0),(0.5,1.0)"]) == (
        *({"d": 1, "a": (0.2, 1.0)}, {"d": 1, "a": (0.5, 1.0)}),
    )


@pytest.mark.parametrize(
    ("swept", "given", "said"),
    [
        (None, [], "nothing to sweep: the config file has no function sweep"),
        (None, ["a"], "--set 'a', expected FIELD=VALUE,VALUE,..."),
        ({"a": 3}, [], "sweep: a=3, expected a list of one or more values"),
        ({"a": []}, [], r"sweep: a=\[\], expected a list"),
        ([], [], r"sweep\(\) returned \[\]"),
        ([3], [], r"sweep\(\) has 3, expected a dict"),
        ({"seed": [0, 1]}, [], "leave it out and give --seeds N"),
        ([{"a": object}], [], "expected a Python literal"),
        ([{"a": np.arange(2)}], [], "expected a Python literal"),
        ({1: [2]}, [], "sweep: 1=2, expected the path of a field"),
        (None, [f"{name}={'1,' * 100}2" for name in "abc"], "1030301 settings, expected up to"),
    ],
)
def test_settings_that_are_refused(swept: Any, given: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_settings(swept, given)


def test_a_folder_is_named_by_what_differs(config: str, tmp_path: Path) -> None:
    sweep = Sweep(config, read_settings(RATES), tmp_path / "s", seeds=2)
    assert [run.folder.name for run in sweep.runs][3:5] == [
        *("base_lr=1.0,weight_decay=0.05,seed=0", "base_lr=0.1,weight_decay=0.0,seed=1")
    ]
    experiment = sweep.runs[4].stage.experiment
    assert (experiment.optimizer.base_lr, experiment.seed) == (0.1, 1)
    seeded = Sweep(config, ({},), tmp_path, 2, ("--config.seed=5",))
    assert [run.folder.name for run in seeded.runs] == ["seed=5", "seed=6"]


def test_names_stay_different_and_are_names_of_folders(config: str) -> None:
    def names(*settings: dict[str, Any]) -> list[str]:
        return Sweep(config, settings, Path("s")).names

    assert names({"evals.a.every.steps": 1, "evals.b.every.steps": 2}) == [
        "evals.a.every.steps=1,evals.b.every.steps=2"
    ]
    first, second = names({"data.source": "folder:/a/b"}, {"data.source": "folder:/a_b"})
    assert first != second
    assert first.startswith("source=folder_a_b_")
    assert len(names({"data.classes": "n" * 400})[0]) < 200
    with pytest.raises(UserError, match=r"the setting base_lr=0.5 2 times"):
        names({"optimizer.base_lr": 0.5}, {"optimizer.base_lr": 0.5})


def test_a_wrong_setting_is_refused_before_anything_runs(config: str, tmp_path: Path) -> None:
    sweep = Sweep(config, read_settings({"objective.typo": [1]}), tmp_path / "s")
    with pytest.raises(UserError, match=r"typo=1: unknown field 'objective\.typo'"):
        run_sweep(sweep)
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match="--seeds 0"):
        Sweep(config, ({},), tmp_path, seeds=0)


def test_workers_share_the_runs_and_group_the_seeds(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = fake_training(monkeypatch)
    sweep = Sweep(config, read_settings(RATES), tmp_path / "s", seeds=2)
    held = sweep.runs[0]
    with locked(held.folder / ".lock"):
        assert run_sweep(sweep, Worker(2, 4)) == 0
    shown = capsys.readouterr().out
    assert "other workers hold the last runs: base_lr=0.1,weight_decay=0.0,seed=0" in shown
    assert "run 3 of 8: base_lr=1.0,weight_decay=0.0,seed=0\n" in shown
    assert begun[0] == sweep.runs[2].folder.name, "the second of four workers starts here"
    assert len(begun) == 7
    stored = json.loads((sweep.workdir / FILE).read_text())
    assert stored["settings"][0]["values"] == [None, pytest.approx(0.11)]
    assert run_sweep(sweep) == 0
    assert len(begun) == 8, "complete runs are not repeated"
    stored = json.loads((sweep.workdir / FILE).read_text())
    assert stored["metric"] == "loss"
    assert [each["mean"] for each in stored["settings"]] == pytest.approx([0.105] * 2 + [1.005] * 2)
    # Student's t with one degree of freedom: 12.706 · 0.00707 / √2.
    assert stored["settings"][0]["interval"] == pytest.approx([0.04147, 0.16853], abs=1e-5)
    page = (sweep.workdir / "report.html").read_text()
    assert "base_lr=0.1,weight_decay=0.0 (best)" in page
    assert "The best of 4 settings is optimistic" in page
    assert page.count("<svg") == 1


def test_a_failed_run_ends_only_itself(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def explode(workdir: Path) -> None:
        if "base_lr=1.0" in workdir.name:
            raise NonFinite("loss or gradient not finite")

    begun = fake_training(monkeypatch, explode)
    sweep = Sweep(config, read_settings({"optimizer.base_lr": [1.0, 0.1]}), tmp_path / "s")
    assert run_sweep(sweep) == 1
    assert len(begun) == 2
    assert "not finite" in (sweep.workdir / "report.html").read_text()
    assert "Best: base_lr=0.1" in capsys.readouterr().out
    fake_training(monkeypatch)
    assert run_sweep(sweep) == 0


def test_another_config_in_the_folder_is_refused(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_training(monkeypatch)
    settings = read_settings({"optimizer.base_lr": [0.1]})
    assert run_sweep(Sweep(config, settings, tmp_path / "s")) == 0
    other = Sweep(config, settings, tmp_path / "s", overrides=("--config.train.batch_size=4",))
    with pytest.raises(UserError, match=r"train.batch_size=8 \(now 4\)"):
        run_sweep(other)


def test_evaluators_are_metrics(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(workdir: Path) -> None:
        top1 = 0.9 if "base_lr=1.0" in workdir.name else 0.4
        images = {"name": "digits", "count": 3, "digest": "d", "split": "validation"}
        record = {
            "evaluator": "knn", "workdir": "w", "objective": "toy", "step": 8, "images": images,
            "protocol": {}, "code": "", "values": {"top1": top1}, "details": {},
        }  # fmt: skip
        write_json(workdir / FOLDER / "knn.json", [record])

    fake_training(monkeypatch, evaluate)
    settings = read_settings({"optimizer.base_lr": [0.1, 1.0]})
    assert run_sweep(Sweep(config, settings, tmp_path / "s")) == 0
    assert "Best: base_lr=1.0, the highest mean knn/top1" in capsys.readouterr().out
    assert run_sweep(Sweep(config, settings, tmp_path / "s", metric="loss")) == 0
    assert "Best: base_lr=0.1, the lowest mean loss" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--metric 'knn/top' is not measured .*'knn/top1'"):
        run_sweep(Sweep(config, settings, tmp_path / "s", metric="knn/top"))


def test_the_evaluator_of_the_metric_must_exist(config: str, tmp_path: Path) -> None:
    sweep = Sweep(config, read_settings(RATES), tmp_path / "s", metric="kn/top1")
    with pytest.raises(UserError, match=r"unknown evaluator 'kn' \(did you mean 'knn'\?\)"):
        run_sweep(sweep)
    assert not (tmp_path / "s").exists()
    (run, *_) = Sweep(config, ({},), tmp_path, metric="knn/top1").runs
    assert run.measurement("knn") == ("knn", Knn(), run.folder)


def test_without_validation_the_metric_is_the_last_training_loss(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_training(monkeypatch, has_validation=False)
    settings = read_settings({"objective.nan_steps": [(98, 99), (99, 98)]})
    assert run_sweep(Sweep(config, settings, tmp_path / "s", seeds=2)) == 0
    stored = json.loads((tmp_path / "s" / FILE).read_text())
    assert stored["metric"] == "train_loss"
    assert stored["settings"][0]["values"] == [2.0, pytest.approx(2.02)]
    shown = capsys.readouterr().out
    assert "the lowest mean train_loss" in shown and "without validation images" in shown
    assert "is optimistic" not in shown and "may not be comparable" in shown


def test_the_metric_is_an_accuracy_else_the_loss() -> None:
    assert choose_metric(None, [{"loss": 1.0, "top1": 0.5}]) == "top1"
    assert choose_metric(None, [{"loss": 1.0}]) == "loss"
    assert choose_metric("mine", []) == "mine", "no run is complete yet"
    with pytest.raises(UserError, match="no accuracy and no loss"):
        choose_metric(None, [{"x/y": 1.0}])


def results(metric: str, *settings: Measured) -> SweepResults:
    return SweepResults("c", metric, ["objective.a", "b"], [0, 1], settings)


def test_the_best_has_every_seed_and_its_lead_is_paired() -> None:
    first = Measured("a=1", {"objective.a": 1, "b": "x"}, [0.5, 0.7], "")
    second = Measured("a=2", {"objective.a": 2, "b": "x"}, [0.4, 0.6], "")
    lucky = Measured("a=10", {"objective.a": 10, "b": "y"}, [0.9, None], "")
    best = results("top1", second, first, lucky).best
    assert best is not None
    assert (best.first, best.second) == (first, second)
    assert best.lead is not None
    assert best.lead.difference == pytest.approx(0.1)
    assert best.lead.low == pytest.approx(0.1), "equal differences of pairs have no spread"
    assert results("eval_loss", second, first).best.first is second  # type: ignore[union-attr]
    assert results("top1", lucky).best is None
    said = " ".join(results("loss", second, first).conclusion)
    assert "their losses may not be comparable" in said
    assert "comparable" not in " ".join(results("top1", second, first).conclusion)


def test_the_plot_has_a_panel_for_each_field_with_several_values() -> None:
    settings = [
        Measured(f"{a}{b}", {"objective.a": a, "b": b}, [a + 0.1, a + 0.2], "")
        for a in (10, 2)
        for b in ("x", "y")
    ]
    figure = plot_fields(results("top1", *settings))
    assert figure is not None
    first, second = figure.axes
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("objective.a", "b")
    assert [label.get_text() for label in first.get_xticklabels()] == ["2", "10"]
    joined = [line for line in first.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    assert [list(line.get_ydata()) for line in joined[-2:]] == [  # type: ignore[call-overload]
        pytest.approx([2.15, 10.15]),
        pytest.approx([2.15, 10.15]),
    ]
    assert plot_fields(results("top1", *settings[:1])) is None


class Rate(Evaluator):
    """The number of images, less with a higher learning rate."""

    def measure(self, subject: Any, images: Any) -> Result:
        kernel = float(abs(subject.params["head"]["kernel"] - np.eye(3)).mean())
        return Result({"value": len(images) - kernel}, "")


@pytest.mark.usefixtures("compiled")
def test_the_command_trains_every_setting_and_reports(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = toy_config(tmp_path)
    path.write_text(
        path.read_text() + "\n\ndef sweep():\n    return {'optimizer.base_lr': [0.5, 1.0]}\n"
    )
    monkeypatch.setattr(run_table.jax.config, "update", lambda *_: None)  # keep the shared cache
    workdir = tmp_path / "sweep"
    command = ["sweep", "--config", f"{path}:{images}", "--workdir", str(workdir)]
    command += overrides("data.num_threads=1")
    assert main([*command, "--set", "optimizer.weight_decay=0.0"]) == 0
    shown = capsys.readouterr().out
    assert "Best: base_lr=" in shown
    folders = sorted(folder.parent.name for folder in workdir.glob(f"*/{RESULT}"))
    assert folders == [f"base_lr={rate},weight_decay=0.0,seed=0" for rate in (0.5, 1.0)]
    assert (workdir / "report.html").is_file()
    assert main([*command, "--jobs", "3", "of", "2"]) == 2
    # An evaluator that finished runs lack measures them. The second time it has nothing to do.
    monkeypatch.setattr("occinv.train.loop.train_claimed", lambda *_: pytest.fail("training"))
    command += ["--set", "optimizer.weight_decay=0.0", "--metric", "mine/value"]
    command += overrides(f"evals={{'mine': {{'name': '{__name__}:Rate'}}}}")
    for _ in range(2):
        assert main(command) == 0
        stored = json.loads((workdir / FILE).read_text())
        assert all(11 < value < 12 for each in stored["settings"] for value in each["values"])
        monkeypatch.setattr(Rate, "measure", lambda *_: pytest.fail("measured"))
    (record,) = read_records(workdir / folders[0] / FOLDER / "mine.json")
    assert record.evaluator == f"{__name__}:Rate"
