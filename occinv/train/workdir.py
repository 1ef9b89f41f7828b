"""What lies in a workdir, and how a finished or running run is read back from it.

<workdir>/config.json    the experiment, field by field, and the names of its classes
<workdir>/images.tsv     the images trained on, where they are a part of the source
<workdir>/checkpoints/   see checkpoints.py
<workdir>/metrics.jsonl  one line for each time metrics were written
<workdir>/result.json    what a finished run came to
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from occinv import schema
from occinv.models import vit
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.schema import UserError
from occinv.train.checkpoints import Checkpoints

CONFIG, CHECKPOINTS, METRICS, RESULT = "config.json", "checkpoints", "metrics.jsonl", "result.json"
IMAGES = "images.tsv"

# What may change when a run goes on, for it has no influence on what the run computes.
FREE = (
    "train.accumulate",
    "train.fsdp",
    "train.remat",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.keep",
    "data.num_threads",
    "data.max_corrupt",
    "data.data_dir",
)


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run read back: what it was, and the parameters it has reached."""

    experiment: schema.Experiment
    objective: Objective
    params: dict[str, Any]  # NumPy arrays by component: `encoder` and the parts of M
    step: int
    classes: tuple[str, ...]


def write_json(path: Path, content: Any) -> None:
    """Writes `content` so that the file is either the old one or the whole new one."""
    _write(path, json.dumps(content, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)


def check_folder(workdir: Path) -> None:
    """Raises UserError if a file stands where `workdir` or a folder above it should be."""
    for path in (workdir, *workdir.parents):
        if path.is_file():
            raise UserError(f"--workdir {workdir}: {path} is a file, expected a folder")


def claim(workdir: Path, experiment: schema.Experiment, classes: tuple[str, ...]) -> None:
    """Makes `workdir` this experiment's, or checks that it is.

    Raises UserError, quoting the fields, when another experiment has begun there, and when it
    cannot be a folder.
    """
    check_folder(workdir)
    if (workdir / CONFIG).exists():
        check_same(workdir, experiment, classes)
    write_json(workdir / CONFIG, {"experiment": as_json(experiment), "classes": list(classes)})


def check_same(
    workdir: Path, experiment: schema.Experiment, classes: tuple[str, ...] | None = None
) -> None:
    """Raises UserError, quoting the fields, unless the run in `workdir` is this experiment's.

    `classes` None: whatever they are.
    """
    theirs = json.loads((workdir / CONFIG).read_text())
    # Resolved, so that a field which an older version had not is at its default.
    before = as_json(schema.resolve(theirs["experiment"]))
    changed = [
        f"{name}={old!r} (now {new!r})"
        for name, old, new in differences(before, as_json(experiment))
        if not name.startswith(FREE)
    ]
    if classes is not None and theirs["classes"] != list(classes):
        changed.append(f"{len(theirs['classes'])} classes (now {len(classes)}, or others)")
    if changed:
        raise UserError(f"{workdir} holds a run with {', '.join(changed)}; use another --workdir")


def record_images(workdir: Path, lines: Iterable[str]) -> None:
    """Writes which images the run trains on, or checks that they are those it has begun with.

    Raises UserError when the source has changed meanwhile, so that the seed now draws others.
    """
    path, text = workdir / IMAGES, "index\tclass\tfile\n" + "".join(f"{line}\n" for line in lines)
    if not path.exists():
        _write(path, text)
    elif (before := path.read_text()) != text:
        changed = set(before.splitlines()) ^ set(text.splitlines())
        raise UserError(
            f"{path}: the data has changed since the run began, which now draws other images "
            f"({len(changed)} lines differ); use another --workdir, or put the images back"
        )


def as_json(experiment: schema.Experiment) -> dict[str, Any]:
    """Every field of an experiment in JSON's types."""
    return json.loads(json.dumps(schema.plain(dataclasses.asdict(experiment))))


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(field, old value, new value) for every leaf in which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            below = f"{path}.{name}" if path else name
            yield from differences(old.get(name), new.get(name), below)
    elif old != new:
        yield path, old, new


def load_run(path: str | Path, step: int | None = None) -> TrainedRun:
    """The run in a workdir, at its newest good checkpoint or at `step`.

    `path` may also be the workdir's `checkpoints` folder or one step in it. Raises UserError if
    there is no such run or nothing in it can be read.
    """
    workdir = Path(path).expanduser()
    if workdir.parent.name == CHECKPOINTS and workdir.name.isdecimal():
        workdir, step = workdir.parent, int(workdir.name)
    if workdir.name == CHECKPOINTS:
        workdir = workdir.parent
    if not (workdir / CONFIG).exists():
        raise UserError(f"{path} is not the workdir of a run: there is no {workdir / CONFIG}")
    stored = json.loads((workdir / CONFIG).read_text())
    experiment = schema.resolve(stored["experiment"])
    classes = tuple(stored["classes"])
    encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
    objective = make_objective(experiment.objective, Setting(encoder, len(classes), total_steps=1))
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params(step)
    return TrainedRun(experiment, objective, params, step, classes)
