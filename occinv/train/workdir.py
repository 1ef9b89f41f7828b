"""The files of a workdir, and how a finished or running run is read back from them.

<workdir>/config.json    the experiment, field by field, and the names of its classes
<workdir>/images.tsv     the training images, if they are a subset of the source
<workdir>/checkpoints/   see checkpoints.py
<workdir>/metrics.jsonl  one line for each time metrics were logged
<workdir>/profile/       a trace of some steps, if train.profile is set: see profiler.py
<workdir>/result.json    the last step and evaluation of a finished run
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from occinv import schema
from occinv.objectives.base import Objective, objective_of
from occinv.schema import UserError
from occinv.train.checkpoints import Checkpoints

CONFIG, CHECKPOINTS, METRICS, RESULT = "config.json", "checkpoints", "metrics.jsonl", "result.json"
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
    "evals",
    "data.num_threads",
    "data.max_corrupt",
    "data.data_dir",
)

# Fields that `occinv train --extend` may change.
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


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that the file is either the old one or the whole new one."""
    _write(path, json.dumps(content, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)


def check_folder(workdir: Path) -> None:
    """Raise UserError if `workdir` or a folder above it is a file."""
    for path in (workdir, *workdir.parents):
        if path.is_file():
            raise UserError(f"--workdir {workdir}: {path} is a file, expected a folder")


def claim(workdir: Path, experiment: schema.Experiment, classes: tuple[str, ...]) -> None:
    """Write the experiment to `workdir`, or check that it is the one that began there.

    Raises:
      UserError: Another experiment began there, or the path cannot be a folder.
    """
    check_folder(workdir)
    if (workdir / CONFIG).exists():
        check_same(workdir, experiment, classes)
    write_json(workdir / CONFIG, {"experiment": as_json(experiment), "classes": list(classes)})


def check_same(
    workdir: Path, experiment: schema.Experiment, classes: tuple[str, ...] | None = None
) -> None:
    """Raise UserError, quoting the fields, unless the run in `workdir` is this experiment's.

    `classes` None: the classes are not compared.
    """
    theirs = json.loads((workdir / CONFIG).read_text())
    # Resolved, so that fields that an older version did not have get their defaults.
    before = as_json(schema.resolve(theirs["experiment"]))
    changed = [
        f"{name}={old!r} (now {new!r})"
        for name, old, new in differences(before, as_json(experiment))
        if not name.startswith(FREE)
    ]
    if classes is not None and theirs["classes"] != list(classes):
        changed.append(f"{len(theirs['classes'])} classes (now {len(classes)}, or others)")
    if changed:
        advice = "use another --workdir"
        if all(each.startswith(LENGTH) for each in changed):
            advice += ", or --extend for a longer run"
        raise UserError(f"{workdir} holds a run with {', '.join(changed)}; {advice}")


def record_images(workdir: Path, lines: Iterable[str]) -> None:
    """Write the list of training images, or check that it is the one the run began with.

    Raises:
      UserError: The source has changed, so that the seed draws other images now.
    """
    path, text = workdir / IMAGES, "index\tclass\tfile\n" + "".join(f"{line}\n" for line in lines)
    if not path.exists():
        _write(path, text)
    elif (before := path.read_text()) != text:
        changed = set(before.splitlines()) ^ set(text.splitlines())
        raise UserError(
            f"{path}: the data has changed since the run began, so other images would be drawn "
            f"({len(changed)} lines differ); use another --workdir, or put the images back"
        )


def as_json(experiment: schema.Experiment) -> dict[str, Any]:
    """Return every field of an experiment in JSON's types."""
    return json.loads(json.dumps(schema.plain(dataclasses.asdict(experiment))))


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, old value, new value) for every leaf in which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            below = f"{path}.{name}" if path else name
            yield from differences(old.get(name), new.get(name), below)
    elif old != new:
        yield path, old, new


def load_run(path: str | Path, step: int | None = None) -> TrainedRun:
    """Read a run at its newest good checkpoint, or at `step`.

    Args:
      path: A workdir, its `checkpoints` folder, or one step in it.
      step: A step exactly.

    Raises:
      UserError: There is no such run, or it cannot be read.
    """
    workdir = Path(path).expanduser()
    if workdir.parent.name == CHECKPOINTS and workdir.name.isdecimal():
        workdir, step = workdir.parent, int(workdir.name)
    if workdir.name == CHECKPOINTS:
        workdir = workdir.parent
    if not (workdir / CONFIG).exists():
        raise UserError(f"{path} is not the workdir of a run; expected a file {workdir / CONFIG}")
    stored = json.loads((workdir / CONFIG).read_text())
    experiment = schema.resolve(stored["experiment"])
    classes = tuple(stored["classes"])
    objective = objective_of(experiment, len(classes))
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(step)
    return TrainedRun(experiment, objective, params, step, classes)
