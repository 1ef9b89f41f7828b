"""Collect the results of a table from its workdirs."""

from __future__ import annotations

import functools
import itertools
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from occinv.data.open_source import open_source
from occinv.evaluators.base import Record
from occinv.objectives.base import objective_of
from occinv.report import course
from occinv.report.measured import QUANTITIES, curves_of, floor_rows
from occinv.report.read_run import (
    encoder_text,
    picture_paths,
    read_objective,
    read_stage,
    set_axes,
)
from occinv.report.results import ENCODERS, Results, Row, Settings
from occinv.reproduce.run import FAILED, TableRun, Trial, read_failure
from occinv.reproduce.specs import COLUMNS, LINEAR, RowSpec
from occinv.schema import Experiment
from occinv.size import size_text
from occinv.train.records import read_records
from occinv.train.workdir import METRICS, read_result
from occinv.train.writers import read_scalars


def collect_results(run: TableRun) -> Results:
    """Read what all workers have measured so far."""
    table, trials = run.table, run.trials
    last_stage = [*trials[0].stages.values()][-1]
    keys = {row.key for row in run.rows}
    return Results(
        title=table.key,
        subject=table.subject,
        columns=[COLUMNS[key] for key in table.columns],
        rows=[make_row(row, run) for row in run.rows] + floor_rows(read_floors(run)),
        command=run.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{os.cpu_count()} CPU cores, {jax.default_backend()}, JAX {jax.__version__}, "
        f"Python {platform.python_version()}",
        seconds=sum(stage.seconds for trial in trials for stage in trial.stages.values()),
        settings=read_settings(last_stage.experiment) | {"seeds": list(range(run.seeds))},
        paper_setting=table.paper_setting,
        notes=list(table.notes),
        layout=table.layout,
        claims=[claim for claim in table.claims if {claim.row, claim.than} <= keys],
    )


def read_settings(experiment: Experiment) -> Settings:
    """The data and the encoder of a stage with labels, in words."""
    data = experiment.data
    classes, train = count_images(data.source, True, data.data_dir, data.classes)
    _, test = count_images(data.eval_source or data.source, False, data.data_dir, data.classes)
    return {
        "data": data.source,
        "images": f"{train} training and {test} test images of {classes} classes, "
        f"{size_text(data.image_size)} pixels",
        "num_test": test,
        "encoder": encoder_text(experiment),
    }


@functools.cache  # listing a large folder takes long
def count_images(
    source: str, train: bool, data_dir: str | None, classes: str | None
) -> tuple[int, int]:
    """The number of classes and of images of a source."""
    opened = open_source(source, train=train, data_dir=data_dir, classes=classes)
    return len(opened.classes), len(opened)


def read_floors(run: TableRun) -> list[Record]:
    """The records of the table that have a floor, of the pretrained encoders first."""
    kinds = ("invariance_pretrained", "invariance_finetuned")
    paths = [trial.evaluations.get(kind, Path()) for kind in kinds for trial in run.trials]
    return [record for path in paths if path.is_file() for record in read_records(path)]


def make_row(spec: RowSpec, run: TableRun) -> Row:
    """Make one row. Fields that have not been measured keep their defaults."""
    row = Row(spec.name, spec.key)
    if run.scale != "smoke" or spec.method is None:  # a few steps compare with nothing
        row.paper, row.paper_epochs = dict(spec.paper), spec.epochs
    row.cka = dict.fromkeys(ENCODERS)
    row.batch_size, row.curve, row.budgets = spec.batch_size, spec.curve, list(spec.budgets)
    if spec.method is None:
        return row
    trials = [Trial(spec.method, seed, run) for seed in range(run.seeds)]
    first, workdir = trials[0], spec.method.workdir
    if first.encoder is not None:
        if workdir is not None:
            row.pretrain, objective = read_stage(workdir), read_objective(workdir)
        else:
            objective = objective_of(first.stage("pretrain").experiment)
        set_axes(row, objective.axes)
        row.transformation = spec.method.transformation
    for name, stage in first.stages.items():
        seconds = stage.seconds or None
        setattr(row, name, read_stage(stage.workdir, stage.experiment, stage.command, seconds))
    if failed := [path for trial in trials if (path := trial.folder / FAILED).exists()]:
        row.status, row.error = "failed", read_failure(failed[0])
    else:
        row.status = "done" if all(trial.is_done for trial in trials) else "running"
    row.values = read_values(trials)
    # The fine-tuned model's predictions on whole images are those of its occlusion accuracy.
    row.hits["finetune"] = [
        each.details["hits"]["random"][0] for each in read_evaluation(trials, "occlusion")
    ]
    for key in ENCODERS:
        row.cka[key] = curves_of(read_evaluation(trials, f"invariance_{key}"))
    row.reconstructions = read_pictures(first)
    return row


def read_values(trials: Sequence[Trial]) -> dict[str, list[float]]:
    """The measured values by column key, one for each seed up to the first that is missing."""
    found: dict[str, list[float]] = {}
    for name in trials[0].stages:
        if name != "pretrain":
            results = read_results(trial.stages[name].workdir for trial in trials)
            keys = {name: "top1"}
            if name == "linear":
                published = f"top1_at_{trials[0].method.pooling}_1"
                names = "top1", published, "top1_class", "top1_mean"
                keys = dict(zip(LINEAR, names, strict=True))
            for column, key in keys.items():
                found[column] = [r["metrics"][key] for r in results if key in r["metrics"]]
    if trials[0].run.table.at_once is not None and "pretrain" in trials[0].stages:
        courses = [read_course(trial.stages["pretrain"].workdir) for trial in trials]
        for key in (column.key for column in course.COLUMNS):
            found[key] = [values[key] for values in courses if key in values]
    for name, quantities in (
        ("psnr", QUANTITIES["psnr"]),
        ("occlusion", QUANTITIES["occlusion"]),
        ("invariance_pretrained", QUANTITIES["invariance"]),
    ):
        for quantity in quantities:
            values = [each.values[quantity.value] for each in read_evaluation(trials, name)]
            found[quantity.column.key] = [value for value in values if value is not None]
    return found


def read_course(workdir: Path) -> dict[str, float]:
    """The values of `course.COLUMNS` of a complete training."""
    if read_result(workdir) is None:
        return {}
    return course.course_of(read_scalars(workdir / METRICS))


def read_evaluation(trials: Iterable[Trial], name: str) -> list[Record]:
    """The record of an evaluation for each seed up to the first that is missing."""
    paths = (trial.evaluations.get(name, Path()) for trial in trials)
    return [read_records(path)[0] for path in itertools.takewhile(Path.is_file, paths)]


def read_results(workdirs: Iterable[Path]) -> list[dict[str, Any]]:
    """The results of runs up to the first that has none, so that seeds stay aligned."""
    found: list[dict[str, Any]] = []
    for workdir in workdirs:
        if (result := read_result(workdir)) is None:
            break
        found.append(result)
    return found


def read_pictures(trial: Trial) -> list[dict[str, str]]:
    """Paths of a trial's reconstructions, relative to the folder of the results."""
    grid = trial.evaluations.get("reconstructions")
    if grid is None or not grid.exists():
        return []
    return [
        {kind: os.path.relpath(path, trial.run.folder) for kind, path in triple.items()}
        for triple in picture_paths(grid.with_suffix(""))
    ]
