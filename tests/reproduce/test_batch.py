"""The table of batch sizes: equal epochs, equal steps, batches in parts."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from rich.console import Console
from tiny_runs import ENCODER, make_images

from occinv.cli import main
from occinv.evaluators.invariance import Invariance
from occinv.plan.chips import CHIPS, Slice
from occinv.plan.plan import Memory, Plan, Roofline
from occinv.reproduce import run as run_module
from occinv.reproduce.batch import EPOCHS, SIZES, STEPS
from occinv.reproduce.plan_table import plan_table
from occinv.reproduce.run import TableRun, Trial
from occinv.reproduce.specs import SCALES
from occinv.reproduce.tables import make_table
from occinv.schema import Experiment, UserError

IMAGES = 1000


def lengths(scale: str, length: float = 1.0) -> dict[tuple[str, str, int], tuple[int, int]]:
    """The steps of the run and of its warm-up, by curve, budget and batch size."""
    table = make_table("batch", scale)
    given = TableRun(table, table.rows, Path("w"), scale, length=length)
    found = {}
    for row in table.rows:
        assert row.method is not None
        if row.batch_size is None:  # random initialization
            continue
        experiment = Trial(row.method, 0, given).stage("pretrain").experiment
        batch = experiment.train.batch_size
        steps = experiment.train.duration.in_steps(batch, IMAGES)
        warmup = experiment.optimizer.warmup.in_steps(batch, IMAGES, steps)
        for budget in row.budgets:
            assert batch == row.batch_size
            found[row.curve, budget, batch] = steps, warmup
    return found


@pytest.mark.parametrize("length", [1.0, 0.5])
@pytest.mark.parametrize("scale", SCALES)
def test_budgets(scale: str, length: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "watched", lambda *_: ())  # slow, and not needed here
    found = lengths(scale, length)
    smallest, *others = SIZES[scale]
    names = {name for name, _, _ in found}
    assert len(found) == 2 * len(names) * len(SIZES[scale])
    for name in names:
        steps, warmup = found[name, EPOCHS, smallest]
        assert steps > warmup >= 0
        for size in others:
            factor = size / smallest
            assert found[name, STEPS, size] == pytest.approx((steps, warmup), abs=1)
            assert found[name, EPOCHS, size] == pytest.approx(
                (steps / factor, warmup / factor), abs=1
            )


@pytest.mark.parametrize(
    ("scale", "key", "accumulate", "remat"),
    [
        ("smoke", "mae_batch16", 1, None),
        ("smoke", "mae_batch32", 2, None),
        ("smoke", "mocov3_batch32", 2, None),
        ("paper", "cmae_batch_batch1024", 8, None),
        ("paper", "supervised_batch1024", 1, True),  # Mixup and CutMix couple the images
    ],
)
def test_a_large_batch_is_computed_in_parts(
    scale: str, key: str, accumulate: int, remat: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    table = make_table("batch", scale)
    row = next(row for row in table.rows if row.key == key)
    assert row.method is not None
    trial = Trial(row.method, 0, TableRun(table, (row,), Path("w"), scale))
    train = trial.stage("pretrain").experiment.train
    assert (train.accumulate, train.remat) == (accumulate, remat)


def test_rows_at_equal_steps_of_the_paper_run_only_by_name() -> None:
    rows = make_table("batch", "paper").rows
    assert {row.by_default for row in rows if row.budgets == (STEPS,)} == {False}
    assert {row.by_default for row in rows if EPOCHS in row.budgets} == {True}


def test_a_table_of_batch_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    equal = ["mae_batch16", "mae_batch32_steps"]
    larger = [row.key for row in make_table("batch", "smoke").rows if row.budgets == (EPOCHS,)]
    keys = [*equal, *larger, "random"]  # every objective
    every = ("data.image_size=16", f"data.source=folder:{images}", *ENCODER, "encoder.patch_size=4")
    fast = Invariance(ratios=(0.75,), untrained=1)
    monkeypatch.setitem(run_module.EVALUATORS, "invariance", fast)
    command = ["reproduce", "batch", "--scale", "smoke", "--workdir", "runs", "--rows"]
    command += [",".join(keys), *(f"--config.{field}" for field in every)]
    try:
        assert main(command) == 0
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    shown = capsys.readouterr().out
    assert "equal steps" in shown
    results = json.loads((tmp_path / "runs" / "batch" / "results.json").read_text())
    rows = {row["key"]: row for row in results["rows"] if not row["is_floor"]}
    assert set(rows) == set(keys)
    random = rows.pop("random")
    assert random["status"] == "done"
    assert [key for key, values in random["values"].items() if values] == ["finetune"]
    for row in rows.values():
        assert row["status"] == "done", row["error"]
        assert row["values"].keys() >= set(make_table("batch", "smoke").columns)
        assert row["cka"]["pretrained"]["floor"]
    assert {rows[key]["pretrain"]["duration"] for key in equal} == {"8 steps"}
    assert {rows[key]["pretrain"]["duration"] for key in larger} == {"4 steps"}


def test_a_table_is_planned_instead_of_run(tmp_path: Path) -> None:
    table = make_table("batch", "paper")
    keys = ("mae_batch4096", "mae_batch16384", "mae_batch1024_steps")
    rows = tuple(row for row in table.rows if row.key in keys)
    planned: list[Experiment] = []

    def planner(experiment: Experiment, slice_: Slice, *counts: int) -> Iterator[Plan]:
        assert counts == (1000, 1281167)
        planned.append(experiment)
        batch = experiment.train.batch_size
        steps = experiment.train.duration.in_steps(batch, counts[1])
        plan = Plan("v5e:16x16", "mae", 256, batch, 1, 1, False, "bfloat16", steps, 1, 1, 1, 2, 1)
        yield plan
        if batch < 16384:
            memory, roofline = Memory(2**30, 0, 0, 0), Roofline(1.0, 2.0, 0.0)
            yield dataclasses.replace(
                plan, remat=True, needed=2**30, memory=memory, roofline=roofline
            )

    slice_ = Slice("v5e:16x16", CHIPS["v5e"], [])
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    run = TableRun(table, rows, tmp_path, "paper")
    assert plan_table(run, slice_, console, planner) == 1
    assert {one.train.accumulate for one in planned} == {1}
    plans = json.loads((tmp_path / "batch" / "plan.json").read_text())
    assert {key: (plan["fits"], plan["steps"]) for key, plan in plans.items()} == {
        "mae_batch4096": (True, 31278),
        "mae_batch16384": (False, 7820),
        "mae_batch1024_steps": (True, 500456),  # as many steps as 100 epochs at 256
    }
    lines = {line.strip().split("  ")[0]: line.split() for line in shown.getvalue().splitlines()}
    assert lines["MAE, 4096"][-7:] == ["remat", "1", "GiB", "0%", "17.4", "h", "17.4", "h"][-7:]
    assert "does not fit" in " ".join(lines["MAE, 16384"])
    with pytest.raises(UserError, match="expected --scale paper"):
        plan_table(dataclasses.replace(run, scale="small"), slice_)
