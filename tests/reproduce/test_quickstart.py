"""What `reproduce quickstart` is going to run. tests/test_chain.py runs a small one."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import numpy as np
import pytest

from occinv import schema
from occinv.cli import main, make_parser
from occinv.configuration import load
from occinv.progress import Progress
from occinv.reproduce import quickstart
from occinv.reproduce.quickstart import ROWS, choose, finetuning, mean_curves, pretraining
from occinv.schema import UserError
from occinv.train.loop import Outcome

KEYS = ["random", "mae", "rmae", "rmae_independent", "rmae_identity", "cmae", "mocov3", "dino"]


def test_the_rows_are_those_that_the_issue_names() -> None:
    assert [row.key for row in ROWS] == KEYS
    assert [row.name for row in ROWS] == [
        "Random init",
        "MAE",
        "R-MAE",
        "R-MAE†",
        "R-MAE‡",
        "C-MAE",
        "MoCo v3",
        "DINO",
    ]


def test_rows_are_chosen_in_the_order_of_the_table() -> None:
    assert choose(None) == list(ROWS[:6])
    assert choose("all") == list(ROWS)
    assert [row.key for row in choose("cmae,mae")] == ["mae", "cmae"]
    with pytest.raises(UserError, match=r"--rows has 'rmea' \(did you mean 'rmae'\?\)"):
        choose("mae,rmea")


@pytest.mark.parametrize("row", ROWS, ids=KEYS)
def test_the_commands_in_the_report_are_what_is_run(row: quickstart.Row, tmp_path: Path) -> None:
    """Typed as they stand, they resolve to the very experiments of the stages."""
    before = pretraining(row, tmp_path, 3, "quickstart")
    after = finetuning(row, tmp_path, 3, "quickstart")
    for stage in filter(None, (before, after)):
        options, rest = make_parser().parse_known_args(shlex.split(stage.command)[1:])
        assert options.workdir == stage.workdir
        path, _, variant = options.config.partition(":")
        found = quickstart.configuration.CONFIGS.parent / path
        assert schema.resolve(load(f"{found}:{variant}", rest)) == stage.experiment
        assert stage.experiment.seed == 3
    assert after.experiment.objective["name"] == "classification"
    if before is None:
        assert row.key == "random"
        assert after.experiment.init_from is None
        assert after.experiment.optimizer.layer_decay == 1
    else:
        assert before.experiment.objective["name"] == row.key.split("_")[0]
        assert after.experiment.init_from == str(before.workdir)


def test_the_variants_of_rmae_are_its_rows() -> None:
    given = {row.key: pretraining(row, Path("w"), 0, "quickstart") for row in ROWS}
    found = {key: stage and stage.experiment.objective.get("t2") for key, stage in given.items()}
    assert found["rmae"] == "complement"
    assert found["rmae_independent"] == "independent"
    assert found["rmae_identity"] == "identity"


def test_every_row_is_fine_tuned_alike() -> None:
    """But for where it starts, and that a random start has no layer-wise decay."""
    stages = [finetuning(row, Path("w"), 0, "quickstart").experiment for row in ROWS]
    for experiment in stages[1:]:
        for section in ("objective", "data", "encoder", "train"):
            assert getattr(experiment, section) == getattr(stages[0], section)
        assert experiment.optimizer == stages[1].optimizer


def test_workdirs_are_apart(tmp_path: Path) -> None:
    stages = [
        make(row, tmp_path, seed, "smoke")
        for row in ROWS
        for seed in (0, 1)
        for make in (pretraining, finetuning)
    ]
    found = [stage.workdir for stage in stages if stage]
    assert len(set(found)) == len(found) == 30


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


def test_what_has_not_run_is_null(tmp_path: Path) -> None:
    for row in ROWS:
        described = quickstart.describe(row, tmp_path, 2, "smoke")
        assert described["status"] == "running"
        assert described["accuracy"] is described["psnr"] is None
        assert described["cka"] == {"pretrained": None, "finetuned": None}
        assert described["reconstructions"] == []
        assert described["finetune"]["loss"] == []
    assert not list(tmp_path.iterdir())


def test_a_stop_is_handed_on_after_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[Path] = []

    def stopped(experiment: schema.Experiment, workdir: Path, watch: object) -> Outcome:
        begun.append(workdir)
        return Outcome(3, 8, {}, int(signal.SIGTERM))

    monkeypatch.setattr(quickstart, "train", stopped)
    workdir = tmp_path / "runs"
    assert main(["reproduce", "quickstart", "--workdir", str(workdir)]) == 143
    assert begun == [workdir / "random" / "seed0" / "finetune"]
    assert "run the same command to go on" in capsys.readouterr().out
    assert (workdir / "report.html").is_file()


def test_progress_counts_the_whole_once() -> None:
    """A stage that goes on from the middle ends at the same whole as one from the start."""
    for first in (1, 6):
        with Progress(total=10.0) as progress:
            watch = progress.stage("stage", cost=4.0)
            for step in range(first, 9):
                watch(step, 8, None)
            progress.done(6.0)
            (whole,) = progress._bars.tasks
            assert whole.completed == pytest.approx(10.0)
            assert whole.finished
