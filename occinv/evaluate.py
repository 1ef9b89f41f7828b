"""`occinv evaluate`: measure the runs in workdirs, and write records.

The module is also the function `occinv.evaluate`, which is `evaluate_one`.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from occinv.data.open_source import open_source
from occinv.data.subset import select
from occinv.evaluators.base import (
    Evaluator,
    Record,
    Subject,
    make_evaluator,
    run_evaluator,
)
from occinv.parallel import make_mesh
from occinv.paths import as_path
from occinv.schema import UserError
from occinv.train.lock import lock_workdir
from occinv.train.records import check_record_file, record_file, write_record
from occinv.train.workdir import TrainedRun, load_run, workdir_of


class Evaluated(NamedTuple):
    """One measurement of one run.

    Attributes:
      record: The measurement, as it was written.
      text: Its numbers in one line.
      pictures: The grid of pictures, if the evaluator draws any.
    """

    record: Record
    text: str
    pictures: Path | None


def evaluate_one(run: str | Path, evaluator: str, **options: Any) -> Record:
    """Measure the newest checkpoint of a run, and write the record into its workdir.

    Args:
      run: A workdir, its `checkpoints` folder, or one step in it.
      evaluator: The name of an evaluator, such as `knn`, or `module:Class`.
      **options: Fields of the evaluator.

    Returns:
      The record: `values` has the numbers, `images` and `protocol` say how they were made.

    Raises:
      UserError: An option is wrong, or the run cannot be read or measured.

    Example:
      >>> import occinv
      >>> record = occinv.evaluate("runs/mae", "knn", neighbors=5, num_images=40)
      >>> record.evaluator, record.images.count, record.protocol["neighbors"]
      ('knn', 40, 5)
      >>> 0 <= record.values["top1"] <= 1
      True
    """
    return evaluate(evaluator, [run], **options)[0].record


def evaluate(
    name: str,
    workdirs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    **options: Any,
) -> list[Evaluated]:
    """Run an evaluator on the newest checkpoint of each run, and write a record into each.

    A record with the same making is replaced; others are kept.

    Args:
      name: A name of `EVALUATORS`, or `module:Class`.
      workdirs: Runs, each as `occinv.train.workdir.load_run` takes it.
      out: The JSON file of the records, for a single workdir; None: `evaluate/NAME.json` in each.
      **options: Fields of the evaluator.

    Raises:
      UserError: No run is given, an option is wrong, a run cannot be read or measured, the file of
        the records has other content, or another process writes into the workdir.
    """
    if not workdirs:
        raise UserError("no workdir given, expected one or more")
    check_out(out, workdirs)
    evaluator = make_evaluator(name, options)
    return [evaluate_run(name, evaluator, workdir, out) for workdir in workdirs]


def check_out(out: str | Path | None, workdirs: Sequence[str | Path]) -> None:
    """Raise UserError if the records of several runs would be in one file."""
    if out is not None and len(workdirs) > 1:
        raise UserError(f"--out {out} with {len(workdirs)} runs, expected one run")


def evaluate_run(
    name: str, evaluator: Evaluator, workdir: str | Path, out: str | Path | None = None
) -> Evaluated:
    """Measure one run, as `evaluate` does."""
    run, folder = load_run(workdir), workdir_of(workdir)
    path = as_path(out) if out else record_file(folder, name)
    check_record_file(path)
    objective = str(run.experiment.objective["name"])
    otherwise = "Wait until it ends, or write the record to another folder with --out."
    is_inside = path.resolve().is_relative_to(folder.resolve())
    with lock_workdir(folder, otherwise) if is_inside else contextlib.nullcontext():
        record, result = run_evaluator(
            name, evaluator, subject_of(run), str(workdir), objective, run.step
        )
        pictures = write_record(path, record, result)
    return Evaluated(record, result.text, pictures)


def subject_of(run: TrainedRun) -> Subject:
    """Return the model of a run and its data, as evaluators take them.

    Its training images may be on another machine, or unknown if its weights were imported. A
    measurement on other images is possible without them.
    """
    data = run.experiment.data
    training = None
    with contextlib.suppress(UserError):
        opened = open_source(data.source, train=True, data_dir=data.data_dir, classes=data.classes)
        training = select(opened, data, run.experiment.seed)
    return Subject(run.objective, run.params, data, training, run.classes, make_mesh())


class _Callable(ModuleType):
    __call__ = staticmethod(evaluate_one)


# Python sets the attribute `evaluate` of `occinv` to this module, so it must be the function, too.
sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(evaluate_one)
