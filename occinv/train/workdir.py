"""The files of a workdir, and how a finished or running run is read back from them.

<workdir>/config.json    the experiment, field by field, its classes, and the name of the run
<workdir>/data.json      the data, compared at every start, and images.tsv: see data_record.py
<workdir>/provenance.json  the version, machine and command of each start
<workdir>/checkpoints/   see checkpoints.py
<workdir>/metrics.jsonl  one line for each time metrics were logged
<workdir>/profile/       a trace of some steps, if train.profile is set: see profiler.py
<workdir>/result.json    the last step and evaluation of a finished run
<workdir>/lock           held by the process that writes into the workdir: see lock.py
<workdir>/.lock          held by the worker that has taken the run of a sweep: see below

A worker of `occinv sweep` holds `.lock` from before the training until the result or the failure is
written. The training and the evaluators in it take `lock`, one after the other, as outside of a
sweep. One file would not do for both: a process cannot lock the same file twice.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import stat
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict

from occinv import schema
from occinv.config import CHECKPOINTS, CONFIG, find_workdir, not_a_run
from occinv.data.identity import Images
from occinv.objectives.base import Objective, objective_of
from occinv.paths import as_path, bucket_of, in_bucket
from occinv.schema import UserError
from occinv.text import one_line
from occinv.train.agree import differences, digest
from occinv.train.checkpoints import Checkpoints
from occinv.train.disk import read_json, write_json, write_text
from occinv.train.manifest import Damaged, RunIdentity, seal

log = logging.getLogger("occinv.train")

METRICS, RESULT = "metrics.jsonl", "result.json"
IMAGES, PROFILE = "images.tsv", "profile"

# Fields that may change when a run is resumed, because its results do not depend on them.
FREE = (
    "train.accumulate",
    "train.fsdp",
    "train.remat",
    "train.attention",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep",
    "train.profile",
    "train.wandb",
    "evals",
    "data.num_threads",
    "data.num_workers",
    "data.max_corrupt",
    "data.data_dir",
)

# Fields whose value may name the same file or folder in another way.
PATHS = ("init_from", "objective.tokenizer.start", "data.source", "data.eval_source", "data.list")

# Fields that `occinv train --extend` may change. The earlier checkpoints stay those of the run.
LENGTH = ("train.duration", "train.stop_after")


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run read back from its workdir.

    Attributes:
      experiment, objective: Its config, and the objective of that.
      params: NumPy arrays by network: `encoder` and those of M.
      step: The checkpoint's step.
      classes: The names of the classes.
    """

    experiment: schema.Experiment
    objective: Objective
    params: dict[str, Any]
    step: int
    classes: tuple[str, ...]


class Stored(NamedTuple):
    """The content of config.json.

    Attributes:
      experiment: The config.
      classes: The names of the classes.
      identity: The run; None if it began before runs had names.
    """

    experiment: schema.Experiment
    classes: tuple[str, ...]
    identity: RunIdentity | None


def check_folder(workdir: Path) -> None:
    """Raise UserError if `workdir` cannot be a folder."""
    shown = repr(str(workdir)[:100])
    if in_bucket(workdir):
        return _check_bucket(shown, bucket_of(workdir))
    for path in (workdir, *workdir.parents):
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise UserError(f"{shown}: {path} is a file, expected a folder")
        except (FileNotFoundError, NotADirectoryError):
            if os.path.islink(path):
                raise UserError(
                    f"{shown}: {path} is a link to a missing folder, expected a folder"
                ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{shown}: {reason}. Use another folder.") from None


def _check_bucket(shown: str, bucket: Path) -> None:
    try:
        is_there = bucket.exists()
    except Exception as error:  # of gcsfs and the libraries below it
        raise UserError(
            f"{shown}: {bucket} cannot be read: {one_line(str(error))}. Get permission to read and "
            "write there, or log in by `gcloud auth application-default login`."
        ) from None
    if not is_there:
        raise UserError(f"{shown}: there is no bucket {bucket}. Create it, or correct its name.")


def check_free(workdir: Path, experiment: schema.Experiment, classes: tuple[str, ...]) -> None:
    """Raise UserError if `workdir` cannot be a folder, or holds the run of another experiment."""
    check_folder(workdir)
    check_folder(workdir / CHECKPOINTS)
    if (workdir / CONFIG).exists():
        check_same(workdir, experiment, classes)
    elif any(path.name.isdecimal() for path in (workdir / CHECKPOINTS).glob("*")):
        raise UserError(
            f"{workdir} holds checkpoints of a run, but no {CONFIG}. Restore it from a copy, or "
            "use another --workdir."
        )


def claim(
    workdir: Path, experiment: schema.Experiment, classes: tuple[str, ...]
) -> RunIdentity | None:
    """Write the experiment to `workdir`, or check that it is the one that began there.

    Returns:
      The run; None if it began before runs had names.

    Raises:
      UserError: Another experiment began there, or the path cannot be a folder.
    """
    check_free(workdir, experiment, classes)
    path, ours = workdir / CONFIG, as_json(experiment)
    if path.exists():
        stored = read_json(path)
        # The other fields stay as they were written, so that their hash in manifests stays valid.
        flat = {name: v for name, v in _flat(stored["experiment"]).items() if not _is_free(name)}
        flat |= {name: v for name, v in _flat(ours).items() if _is_free(name)}
        stored["experiment"] = unflatten_dict(flat)
    else:
        axes = objective_of(experiment, len(classes)).axes._asdict()
        stored = {
            "run": uuid.uuid4().hex,
            "experiment": ours,
            "classes": list(classes),
            "axes": axes,
        }
    write_json(path, stored)
    return _identity(stored)


def _flat(experiment: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    return flatten_dict(experiment, keep_empty_nodes=True)


def _is_free(name: tuple[str, ...]) -> bool:
    return ".".join(name).startswith(FREE)


def _identity(stored: dict[str, Any]) -> RunIdentity | None:
    if "run" not in stored:
        return None
    fixed = {
        ".".join(name): None if value == {} else value
        for name, value in flatten_dict(stored["experiment"]).items()
        if not _is_free(name) and not ".".join(name).startswith(LENGTH)
    }
    text = json.dumps([fixed, stored["classes"]], sort_keys=True)
    return RunIdentity(str(stored["run"]), digest(text))


def read_config(workdir: Path) -> Stored:
    """Read config.json.

    Raises:
      UserError: The file is missing or damaged.
    """
    path = workdir / CONFIG
    try:
        stored = read_json(path)
    except FileNotFoundError:
        raise not_a_run(workdir) from None
    try:
        experiment = schema.resolve(stored["experiment"])
        return Stored(experiment, tuple(map(str, stored["classes"])), _identity(stored))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise not_a_run(workdir, repr(error)) from None


def read_result(workdir: Path) -> dict[str, Any] | None:
    """Read result.json; None if the run has not finished. Numbers that were not finite are NaN.

    Raises:
      UserError: The file is damaged, or was written by another run.
    """
    path = workdir / RESULT
    if not path.exists():
        return None
    result = read_json(path)
    try:
        step, metrics = int(result["step"]), result["metrics"]
        metrics = {n: math.nan if value is None else float(value) for n, value in metrics.items()}
        if "images" in result:
            Images(**result["images"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not the result of a run: {error!r}. Move it away.") from None
    ours = read_config(workdir).identity
    if result.get("run") != (ours and ours.run):
        raise UserError(f"{path} is the result of another run than {CONFIG}. Move it away.")
    return {**result, "step": step, "metrics": metrics}


def accept(workdir: Path) -> list[int]:
    """Write manifests for the checkpoints that have none, or one without the run, as they are.

    Returns:
      The steps of these checkpoints.

    Raises:
      UserError: `workdir` does not contain a run, or a checkpoint differs from its old manifest.
    """
    read_config(workdir)
    stored = read_json(workdir / CONFIG)
    if "run" not in stored:
        stored["run"] = uuid.uuid4().hex
        write_json(workdir / CONFIG, stored)
        if (result := workdir / RESULT).exists():
            write_json(result, {**read_json(result), "run": stored["run"]})
    identity, accepted = _identity(stored), []
    assert identity is not None
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            try:
                if seal(checkpoints.folder / str(step), step, identity):
                    accepted.append(step)
            except Damaged as error:
                raise UserError(f"{workdir}: checkpoint {step} is damaged ({error})") from None
    return accepted


def check_same(
    workdir: Path, experiment: schema.Experiment, classes: tuple[str, ...] | None = None
) -> None:
    """Raise UserError, quoting the fields, unless the run in `workdir` is this experiment's.

    `classes` None: the classes are not compared.
    """
    theirs = read_config(workdir)
    # Resolved, so that fields that an older version did not have get their defaults.
    changed = [
        f"{name}={old!r} (now {new!r})"
        for name, old, new in differences(as_json(theirs.experiment), as_json(experiment))
        if not name.startswith(FREE) and not (name in PATHS and _is_same_path(old, new))
    ]
    if classes is not None and theirs.classes != tuple(classes):
        changed.append(f"{len(theirs.classes)} classes (now {len(classes)}, or others)")
    if changed:
        advice = "use another --workdir"
        if all(each.startswith(LENGTH) for each in changed):
            advice += ", or --extend for a longer run"
        raise UserError(f"{workdir} holds a run with {', '.join(changed)}; {advice}")


def _is_same_path(old: Any, new: Any) -> bool:
    """Whether two values name one file or folder, perhaps after a prefix such as `folder:`."""
    if None in (old, new):
        return False
    (kind, _, path), (new_kind, _, new_path) = (str(each).rpartition(":") for each in (old, new))
    return kind == new_kind and Path(path).resolve() == Path(new_path).resolve()


def record_images(workdir: Path, lines: Iterable[str]) -> None:
    """Write the list of training images."""
    write_text(workdir / IMAGES, "index\tclass\tfile\n" + "".join(f"{line}\n" for line in lines))


def as_json(experiment: schema.Experiment) -> dict[str, Any]:
    """Return every field of an experiment in JSON's types."""
    return json.loads(json.dumps(schema.plain(dataclasses.asdict(experiment))))


def workdir_of(path: str | Path) -> Path:
    """Return the workdir of a workdir, its `checkpoints` folder, or a step in it.

    Raises:
      UserError: The path does not belong to a run.
    """
    found = find_workdir(path)
    if found is None:
        raise not_a_run(path)
    return found


def step_of(path: str | Path) -> int | None:
    """Return the step that a path names: `WORKDIR/checkpoints/STEP`; None for other paths."""
    path = as_path(path)
    return int(path.name) if path.parent.name == CHECKPOINTS and path.name.isdecimal() else None


def load_run(path: str | Path, step: int | None = None) -> TrainedRun:
    """Read a run at its newest good checkpoint, or at `step`.

    Args:
      path: A workdir, its `checkpoints` folder, or one step in it.
      step: A step exactly.

    Raises:
      UserError: There is no such run, or it cannot be read.
    """
    workdir = workdir_of(path)
    step = step_of(path) if step is None else step
    experiment, classes, identity = read_config(workdir)
    objective = objective_of(experiment, len(classes))
    with Checkpoints(workdir / CHECKPOINTS, read_only=True, run=identity) as checkpoints:
        step, params = checkpoints.restore_params(step)
    return TrainedRun(experiment, objective, params, step, classes)
