"""`occinv report`: results of `occinv reproduce` and workdirs of single runs in one table."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from occinv import schema
from occinv.evaluators.reconstructions import Triple
from occinv.models import vit
from occinv.objectives.base import Axes, Objective, objective_of
from occinv.report.html import write_html
from occinv.report.results import (
    ENCODERS,
    FILE,
    MISSING,
    PSNR,
    CkaCurves,
    Column,
    Results,
    Row,
    Settings,
    StageRecord,
    load_results,
)
from occinv.report.table import print_results
from occinv.schema import UserError
from occinv.train.workdir import CHECKPOINTS, CONFIG, METRICS, RESULT, as_json
from occinv.train.writers import read_scalars

COLUMNS = (
    Column("top1", "Top-1 %", "%", "top-1 on the run's validation images"),
    Column("knn", "k-NN %", "%", "top-1 of weighted nearest neighbors"),
    PSNR,
)
# The stage of a run whose objective trains on labels. Every other objective pretrains.
OBJECTIVE_STAGES = {"classification": "finetune", "linear_probe": "linear"}


def report(folders: Sequence[Path]) -> Path:
    """Print the table of `compare(folders)`, and write the page into the first folder.

    Returns:
      The path of the page: `report.html` for a single folder with results, else `comparison.html`.

    Raises:
      UserError: As `compare`.
    """
    results = compare(folders)
    print_results(results)
    is_single = len(unique_names(folders)) == 1 and (folders[0] / FILE).exists()
    return write_html(results, folders[0], "report.html" if is_single else "comparison.html")


def compare(folders: Sequence[Path]) -> Results:
    """Collect the rows of several folders.

    Args:
      folders: Folders with `results.json`, which contribute all their rows, and workdirs of runs,
        which contribute one row each. Rows with equal names get the folder's name as a prefix.

    Returns:
      The results of a single folder unchanged, else all rows. Paths of pictures are absolute.

    Raises:
      UserError: No folder is given, or one of them contains neither.
    """
    names = unique_names(folders)
    parts = {name: _read_folder(folder, name) for folder, name in names.items()}
    if not parts:
        raise UserError(f"no folder given. Give workdirs of runs or folders with {FILE}")
    if len(parts) == 1 and (next(iter(names)) / FILE).exists():
        return next(iter(parts.values()))
    columns: dict[str, Column] = {}
    for part in parts.values():
        columns |= {c.key: c for c in part.columns if c.key not in columns}
    settings, different = _merge_settings(parts)
    notes = [note for part in parts.values() for note in part.notes] + [*different.values()]
    return Results(
        title="comparison",
        subject="Comparison of runs",
        columns=list(columns.values()),
        rows=_merge_rows(parts),
        command=f"occinv report {' '.join(map(str, folders))}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        same_data=not {"data", "images"} & set(different),
        paper_setting="; ".join(dict.fromkeys(p.paper_setting for p in parts.values() if p.title)),
        notes=list(dict.fromkeys(notes)),
        claims=[
            dataclasses.replace(claim, row=f"{name}/{claim.row}", than=f"{name}/{claim.than}")
            for name, part in parts.items()
            for claim in part.claims
        ],
    )


def _merge_settings(parts: Mapping[str, Results]) -> tuple[Settings, dict[str, str]]:
    """The settings on which all parts agree, and for each other setting a note."""
    settings: Settings = {}
    notes = {}
    for key in dict.fromkeys(key for part in parts.values() for key in part.settings):
        given = {name: part.settings[key] for name, part in parts.items() if key in part.settings}
        first, *others = given.values()
        if all(value == first for value in others):
            settings[key] = first
        else:
            each = "; ".join(f"{name} has {value}" for name, value in given.items())
            notes[key] = f"Different {key.replace('_', ' ')}: {each}."
    return settings, notes


def _merge_rows(parts: Mapping[str, Results]) -> list[Row]:
    count = Counter(row.name for part in parts.values() for row in part.rows)
    return [
        dataclasses.replace(
            row,
            key=f"{name}/{row.key}",
            name=f"{name}: {row.name}" if count[row.name] > 1 else row.name,
        )
        for name, part in parts.items()
        for row in part.rows
    ]


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


def _read_folder(folder: Path, name: str) -> Results:
    if (folder / FILE).exists():
        results = load_results(folder)
        for row in results.rows:
            row.reconstructions = [
                {kind: str(folder / path) for kind, path in triple.items()}
                for triple in row.reconstructions
            ]
        return results
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} contains neither {FILE} nor {CONFIG}. Give a folder of `occinv reproduce` "
            "or the workdir of a run"
        )
    experiment, _ = _read_config(folder)
    row = _read_row(folder, name, experiment)
    data = experiment.data
    return Results(
        title="",
        columns=[column for column in COLUMNS if row.values[column.key]],
        rows=[row],
        settings={"data": data.eval_source or data.source, "encoder": encoder_text(experiment)},
    )


def encoder_text(experiment: schema.Experiment) -> str:
    """The size of an experiment's encoder in words."""
    encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
    return (
        f"ViT of {encoder.depth} blocks, {encoder.width} wide, patches of "
        f"{encoder.patch_size}² pixels"
    )


def _read_row(folder: Path, name: str, experiment: schema.Experiment) -> Row:
    """The row of a single run, with the axes of the pretraining if it starts from one."""
    row = Row(name, "run", cka=dict.fromkeys(ENCODERS))
    stage = OBJECTIVE_STAGES.get(str(experiment.objective["name"]), "pretrain")
    setattr(row, stage, read_stage(folder))
    pretrained: Path | None = folder
    if stage != "pretrain" and experiment.init_from is not None:
        start = Path(experiment.init_from).expanduser()
        pretrained = next((p for p in (start, *start.parents[:2]) if (p / CONFIG).exists()), None)
        row.pretrain = StageRecord() if pretrained is None else read_stage(pretrained)
    set_axes(row, read_objective(pretrained or folder).axes)
    row.transformation = "patch masking" if "removed" in row.t1 else MISSING
    row.status = "done" if (folder / RESULT).exists() or _is_imported(folder) else "running"
    top1 = (_read_json(folder / RESULT).get("metrics") or {}).get("top1")
    psnr, knn = (_read_json(folder / "evaluate" / f"{name}.json") for name in ("psnr", "knn"))
    row.values = {
        "top1": [top1] if top1 is not None else [],
        "knn": [knn["top1"]] if knn else [],
        "psnr": [psnr["whole"]] if psnr else [],
        "psnr_removed": [psnr["removed"]] if psnr else [],
    }
    row.cka["finetuned" if stage == "finetune" else "pretrained"] = _read_curves(folder)
    row.reconstructions = picture_paths(folder / "evaluate" / "reconstructions")
    return row


def set_axes(row: Row, axes: Axes) -> None:
    """Copy the axes of an objective into a row."""
    row.t1, row.t2, row.target, row.measure = axes.t1, axes.t2, axes.target, axes.measure
    row.framework = axes.framework


def read_objective(workdir: Path) -> Objective:
    """Build the objective of the run in `workdir`.

    Raises:
      UserError: `workdir` does not contain a run.
    """
    return objective_of(*_read_config(workdir))


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
      seconds: The training time so far.

    Raises:
      UserError: No experiment is given, and `workdir` does not contain a run.
    """
    if experiment is None:
        experiment, _ = _read_config(workdir)
    lines = read_scalars(workdir / METRICS) if (workdir / METRICS).exists() else []
    return StageRecord(
        duration=None if _is_imported(workdir) else str(experiment.train.duration),
        command=command,
        config=json.dumps(as_json(experiment), indent=1),
        seconds=seconds,
        parameters=next((line["parameters"] for line in lines if "parameters" in line), None),
        loss=[(line["step"], line["loss"]) for line in lines if "loss" in line],
        accuracy=[(line["step"], line["eval/top1"]) for line in lines if "eval/top1" in line],
    )


def picture_paths(folder: Path) -> list[dict[str, str]]:
    """Absolute paths of the pictures in a folder: `original`, `masked` and `reconstructed`."""
    folder = folder.absolute()
    numbers = sorted(int(path.name.split("_")[0]) for path in folder.glob("*_original.png"))
    return [
        {kind: str(folder / f"{number}_{kind}.png") for kind in Triple._fields}
        for number in numbers
    ]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _read_curves(workdir: Path) -> CkaCurves | None:
    """The CKA curves of this run, from a file that may contain other runs."""
    models = _read_json(workdir / "evaluate" / "cka.json").get("models")
    if not models:
        return None
    own = (m for m in models if workdir in (p := Path(m["workdir"]).resolve(), *p.parents))
    # The file is written beside the first model, even if the workdir has been moved since.
    model = next(own, models[0])
    return CkaCurves(model["ratios"], model["blocks"], model["values"])


def _is_imported(workdir: Path) -> bool:
    """Whether the weights were imported: a training run saves nothing before its first step."""
    return (workdir / CHECKPOINTS / "0").exists()


def _read_config(workdir: Path) -> tuple[schema.Experiment, int]:
    """A run's experiment and its number of classes."""
    path = workdir / CONFIG
    try:
        stored = json.loads(path.read_text())
        return schema.resolve(stored["experiment"]), len(stored["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the config of a run: {error!r}") from None
