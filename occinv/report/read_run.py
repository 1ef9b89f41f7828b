"""Read a run from its workdir: its config, its objective, and how its training went."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from occinv import schema
from occinv.evaluators.reconstructions import Triple
from occinv.models import vit
from occinv.objectives import OBJECTIVES
from occinv.objectives.base import Axes, Objective, objective_of
from occinv.report.results import Points, Row, StageRecord
from occinv.size import size_text
from occinv.train.disk import read_json
from occinv.train.workdir import CHECKPOINTS, CONFIG, METRICS, as_json
from occinv.train.workdir import read_config as read_stored
from occinv.train.writers import read_scalars

# The monitors with one number.
SINGLE = (
    "noise_scale", "feature_rank", "feature_variance", "agreement", "agreement_by_chance",
)  # fmt: skip


def encoder_text(experiment: schema.Experiment) -> str:
    """The size of an experiment's encoder in words."""
    encoder = vit.vit_of(experiment)
    return (
        f"ViT of {encoder.depth} blocks, {encoder.width} wide, patches of "
        f"{size_text(encoder.patch_size)} pixels"
    )


def set_axes(row: Row, axes: Axes) -> None:
    """Copy the axes of an objective into a row."""
    row.t1, row.t2, row.target, row.measure = axes.t1, axes.t2, axes.target, axes.measure
    row.framework = axes.framework


def read_objective(workdir: Path) -> Objective:
    """Build the objective of the run in `workdir`.

    Raises:
      UserError: `workdir` does not contain a run.
    """
    return objective_of(*read_config(workdir))


def read_axes(workdir: Path) -> Axes:
    """Return the axes of the objective of the run in `workdir`.

    The class of an objective of one's own is not imported, because the workdir may come from
    somebody else. Its axes are in config.json; without them, they are unknown.

    Raises:
      UserError: `workdir` does not contain a run.
    """
    experiment, num_classes = read_config(workdir)
    name = str(experiment.objective.get("name"))
    if name in OBJECTIVES or name.startswith("occinv."):
        return objective_of(experiment, num_classes).axes
    try:
        axes = {name: str(text) for name, text in read_json(workdir / CONFIG)["axes"].items()}
        return Axes(**axes)  # type: ignore[arg-type]
    except (KeyError, TypeError, AttributeError):
        return Axes("unknown", "unknown", "unknown", "unknown")


def read_stage(
    workdir: Path,
    experiment: schema.Experiment | None = None,
    command: str | None = None,
    seconds: float | None = None,
) -> StageRecord:
    """Read how a run was configured and how its training went.

    Args:
      workdir: The run's folder. It may be empty if `experiment` is given.
      experiment: The run's experiment; None reads it from the workdir.
      command: The command that repeats the run.
      seconds: The training time so far. None computes the time in training steps instead.

    Raises:
      UserError: No experiment is given, and `workdir` does not contain a run.
    """
    if experiment is None:
        experiment, _ = read_config(workdir)
    lines = read_scalars(workdir / METRICS) if (workdir / METRICS).exists() else []
    train = experiment.train
    return StageRecord(
        duration=None if is_imported(workdir) else str(train.stop_after or train.duration),
        command=command,
        config=json.dumps(as_json(experiment), indent=1),
        seconds=seconds,
        step_seconds=_step_seconds(lines, experiment) if seconds is None else None,
        parameters=next((line["parameters"] for line in lines if "parameters" in line), None),
        loss=[(line["step"], line["loss"]) for line in lines if "loss" in line],
        accuracy=[(line["step"], line["eval/top1"]) for line in lines if "eval/top1" in line],
        monitors=_monitors(lines),
    )


def _monitors(lines: Sequence[Mapping[str, Any]]) -> dict[str, Points]:
    """The monitors of a log by name. Of the entropy of attention, it is that of the last block."""
    found: dict[str, Points] = {}
    for line in lines:
        values = {name: line[name] for name in SINGLE if name in line}
        entropies = [line[name] for name in line if name.startswith("attention_entropy/")]
        if entropies:
            values["attention_entropy"] = entropies[-1]
        for name, value in values.items():
            found.setdefault(name, []).append((line["step"], value))
    return found


def last_loss(workdir: Path) -> float | None:
    """The last logged training loss of a run; None before the first."""
    path = workdir / METRICS
    lines = read_scalars(path) if path.exists() else []
    return next((line["loss"] for line in reversed(lines) if "loss" in line), None)


def _step_seconds(lines: list[dict[str, Any]], experiment: schema.Experiment) -> float | None:
    """The time of all training steps in seconds, by the logged speed; None if none is logged.

    The wall time is not known, because a run may have been interrupted. The speed of a line is that
    of the steps since the line before, without compilation and evaluation.
    """
    seconds, start = 0.0, 0
    for line in lines:
        if speed := line.get("images_per_second"):
            seconds += (line["step"] - start) * experiment.train.batch_size / speed
            start = line["step"]
    return seconds or None


def picture_paths(folder: Path) -> list[dict[str, str]]:
    """Absolute paths of the pictures in a folder: `original`, `masked` and `reconstructed`."""
    folder = folder.absolute()
    numbers = sorted(int(path.name.split("_")[0]) for path in folder.glob("*_original.png"))
    return [
        {kind: str(folder / f"{number}_{kind}.png") for kind in Triple._fields}
        for number in numbers
    ]


def is_imported(workdir: Path) -> bool:
    """Whether the weights were imported: a training run saves nothing before its first step."""
    return (workdir / CHECKPOINTS / "0").exists()


def read_config(workdir: Path) -> tuple[schema.Experiment, int]:
    """A run's experiment and its number of classes."""
    stored = read_stored(workdir)
    return stored.experiment, len(stored.classes)


def unique_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Name each folder by its last parts, as few as make all names different.

    Returns:
      Names by absolute path, without repetitions, in the given order.
    """
    depths = {folder.expanduser().resolve(): 1 for folder in folders}
    while True:
        names = {folder: "/".join(folder.parts[-depth:]) for folder, depth in depths.items()}
        count = Counter(names.values())
        clashing = [folder for folder, name in names.items() if count[name] > 1]
        if not clashing:
            return names
        depths |= {folder: depths[folder] + 1 for folder in clashing}
