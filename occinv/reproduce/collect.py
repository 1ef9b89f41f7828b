"""What stands in a workdir, as `results.json` (see occinv.report)."""

from __future__ import annotations

import functools
import itertools
import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from occinv.data.open_source import open_source
from occinv.models import vit
from occinv.objectives.base import Setting, make_objective
from occinv.report.runs import describe_run, objective_of, pictures
from occinv.reproduce.definition import COLUMNS, Row
from occinv.reproduce.trial import FAILED, RUNS, Plan, Trial, trials_of
from occinv.train.workdir import RESULT

NOTHING = dict.fromkeys(("framework", "transformation", "t1", "t2", "target", "measure"), "–")


def collect(plan: Plan, rows: Sequence[Row], seeds: int, command: str) -> dict[str, Any]:
    """The results of a table so far; `seconds` are those of all trainings, whoever ran them."""
    table = plan.table
    trials = trials_of(plan, rows, seeds)
    some = [*trials[0].stages.values()][-1].experiment
    return {
        "title": table.key,
        "subject": table.subject,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPU cores, {jax.default_backend()}, JAX {jax.__version__}, "
        f"Python {platform.python_version()}",
        "seconds": sum(stage.seconds for trial in trials for stage in trial.stages.values()),
        "settings": describe_setting(some) | {"seeds": list(range(seeds))},
        "paper_setting": table.paper_setting,
        "notes": list(table.notes),
        "by_axes": table.by_axes,
        "columns": [COLUMNS[key]._asdict() for key in table.columns],
        "claims": [c._asdict() for c in table.claims if {c.row, c.than} <= {r.key for r in rows}],
        "rows": [describe(row, plan, seeds) for row in rows],
    }


def describe_setting(experiment: Any) -> dict[str, Any]:
    """Data and encoder of the trainings on labels, in words."""
    data = experiment.data
    classes, train = count(data.source, True, data.data_dir, data.classes)
    _, test = count(data.eval_source or data.source, False, data.data_dir, data.classes)
    size = vit.make_vit(experiment.encoder, data.image_size)
    return {
        "data": f"{data.source}: {classes} classes, {train} training and {test} test images of "
        f"{data.image_size}² pixels",
        "num_test": test,
        "encoder": f"ViT of {size.depth} blocks, {size.width} wide, patches of "
        f"{size.patch_size}² pixels",
    }


@functools.cache
def count(source: str, train: bool, data_dir: str | None, kept: str | None) -> tuple[int, int]:
    """The classes and images of a source: once, for listing a large folder takes its time."""
    opened = open_source(source, train=train, data_dir=data_dir, classes=kept)
    return len(opened.classes), len(opened)


def describe(row: Row, plan: Plan, seeds: int) -> dict[str, Any]:
    """One row; what has not been run is null."""
    about = {
        "name": row.name,
        "key": row.key,
        "paper": dict(row.paper),
        "paper_epochs": row.epochs,
    }
    if row.method is None:
        nothing = {"cka": dict.fromkeys(("pretrained", "finetuned")), "reconstructions": []}
        return about | NOTHING | dict.fromkeys(RUNS) | nothing | {
            "status": "done", "error": None, "values": {},
        }  # fmt: skip
    trials = [Trial(row.method, seed, plan) for seed in range(seeds)]
    start = row.method.start
    failed = [path for trial in trials if (path := trial.folder / FAILED).exists()]
    is_done = all(trial.is_done for trial in trials)
    first = trials[0]
    return about | axes(first) | {
        "status": "failed" if failed else "done" if is_done else "running",
        "error": json.loads(failed[0].read_text())["error"] if failed else None,
        **dict.fromkeys(RUNS),
        "pretrain": None if start is None else describe_run(start),
        **{
            run: describe_run(stage.workdir, stage.experiment, stage.command, stage.seconds or None)
            for run, stage in first.stages.items()
        },
        "values": values(trials),
        "cka": {
            when: mean_curves([found["models"][0] for found in read(trials, f"cka_{when}")])
            for when in ("pretrained", "finetuned")
        },
        "reconstructions": drawn(first, plan.folder),
    }  # fmt: skip


def axes(trial: Trial) -> dict[str, str]:
    """What its encoder has learned: T1, T2, target and M, and what is said of them."""
    if trial.encoder is None:
        return NOTHING
    if trial.method.start is not None:
        objective = objective_of(trial.method.start)
    else:
        experiment = trial.stage("pretrain").experiment
        encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
        objective = make_objective(
            experiment.objective, Setting(encoder, num_classes=2, total_steps=1)
        )
    return {
        "framework": objective.framework,
        "transformation": trial.method.transformation,
        **objective.axes._asdict(),
    }


def values(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """What was measured by column, of the seeds up to the first that is missing."""
    found: dict[str, list[float]] = {}
    for run in trials[0].stages:
        results = existing(trial.stages[run].workdir / RESULT for trial in trials)
        top1 = [result["metrics"].get("top1") for result in results]
        found[run] = [value for value in top1 if value is not None]
    found.pop("pretrain", None)
    psnr = read(trials, "psnr")
    found["psnr"] = [each["whole"] for each in psnr]
    found["psnr_removed"] = [each["removed"] for each in psnr]
    return found


def read(trials: Iterable[Trial], name: str) -> list[dict[str, Any]]:
    """What was measured of each trial under this name, up to the first that is missing."""
    return existing(trial.measured.get(name, Path()) for trial in trials)


def existing(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The JSON of these files up to the first that is missing, so that seeds stay in step."""
    there = itertools.takewhile(Path.is_file, paths)
    return [json.loads(path.read_text()) for path in there]


def mean_curves(models: list[dict[str, Any]]) -> dict[str, Any] | None:
    """CKA curves averaged over seeds, with the values of each seed beside them."""
    if not models:
        return None
    values = np.array([model["values"] for model in models], float)
    return {
        "ratios": models[0]["ratios"],
        "blocks": models[0]["blocks"],
        "values": values.mean(0).tolist(),
        "by_seed": values.tolist(),
    }


def drawn(trial: Trial, folder: Path) -> list[dict[str, str]]:
    """Paths of a trial's reconstructions, relative to the folder of the results."""
    grid = trial.measured.get("reconstructions")
    if grid is None or not grid.exists():
        return []
    return [
        {kind: os.path.relpath(path, folder) for kind, path in triple.items()}
        for triple in pictures(grid.with_suffix(""))
    ]
