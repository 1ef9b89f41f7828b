"""Any runs side by side: the results that `html` and `table` show, read from folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from occinv import schema
from occinv.evaluators.reconstructions import Triple
from occinv.models import vit
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.report.html import write_html
from occinv.report.matrix import print_results
from occinv.report.results import PAPER_SETTING, STAGES, load_results
from occinv.schema import UserError
from occinv.train.workdir import CHECKPOINTS, CONFIG, METRICS, RESULT, as_json
from occinv.train.writers import read_scalars

RESULTS = "results.json"
COLUMNS = (
    {"key": "top1", "heading": "Top-1 %", "unit": "%", "about": "on the run's held-out images"},
    {"key": "knn", "heading": "k-NN %", "unit": "%", "about": "weighted nearest neighbors, top-1"},
    {"key": "psnr", "heading": "PSNR", "unit": "dB", "about": "reconstruction of the whole image"},
)
# What a run on labels is in its row; any other objective is a pre-training.
ON_LABELS = {"classification": "finetune", "linear_probe": "linear"}


def report(folders: Sequence[Path]) -> Path:
    """Prints the table of `compare(folders)` and writes the page into the first folder.

    Returns the path of the page: `report.html` for a single folder with results, else
    `comparison.html`. Raises UserError as `compare`.
    """
    results = compare(folders)
    print_results(results)
    is_one = len(unique_names(folders)) == 1 and (folders[0] / RESULTS).exists()
    return write_html(results, folders[0], "report.html" if is_one else "comparison.html")


def compare(folders: Sequence[Path]) -> dict[str, Any]:
    """The content of a `results.json` with the rows of all folders.

    Args:
      folders: each with a `results.json`, all of whose rows are taken, or the workdir of a run,
        which becomes one row. Rows of one name get their folder's in front.

    Returns:
      Of a single folder with results, these. Paths of pictures are absolute. `same_data` says
      whether all rows are of one data set: without, none of them is the others' baseline.

    Raises:
      UserError: no folder, or one that is neither.
    """
    names = unique_names(folders)
    parts = {name: _part(folder, name) for folder, name in names.items()}
    if not parts:
        raise UserError("no folder given, expected workdirs of runs or folders with results.json")
    if len(parts) == 1 and "title" in (only := next(iter(parts.values()))):
        return only
    columns: dict[str, Any] = {}
    for column in (column for part in parts.values() for column in part["columns"]):
        columns.setdefault(column["key"], column)
    settings, notes = _settings(parts)
    tables = [part for part in parts.values() if "title" in part]
    papers = dict.fromkeys(part.get("paper_setting", PAPER_SETTING) for part in tables)
    return {
        "title": "comparison",
        "subject": "Runs side by side",
        "command": f"occinv report {' '.join(map(str, folders))}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": None,
        "seconds": None,
        "settings": settings,
        "same_data": "data" in settings,
        "paper_setting": "; ".join(papers),
        "notes": list(dict.fromkeys(notes)),
        "columns": list(columns.values()),
        "claims": [
            claim | {end: f"{name}/{claim[end]}" for end in ("row", "than")}
            for name, part in parts.items()
            for claim in part.get("claims", ())
        ],
        "rows": _rows(parts),
    }


def _settings(parts: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The settings in which all parts that have them agree, and the notes, with what differs."""
    settings: dict[str, Any] = {}
    notes = [note for part in parts.values() for note in part.get("notes", ())]
    for key in dict.fromkeys(key for part in parts.values() for key in part["settings"]):
        told = {n: part["settings"][key] for n, part in parts.items() if key in part["settings"]}
        shortest, *others = sorted(told.values(), key=lambda value: len(str(value)))
        longest = others[-1] if others else shortest
        # `reproduce` writes "digits: 10 classes, …" where a run knows no more than "digits".
        is_same = longest == shortest or str(longest).startswith(f"{shortest}: ")
        if is_same and all(value in (shortest, longest) for value in told.values()):
            settings[key] = longest
        elif key in ("data", "encoder"):
            each = "; ".join(f"{name} has {value}" for name, value in told.items())
            notes.append(f"Not of the same {key}: {each}.")
    return settings, notes


def _rows(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    named = Counter(row["name"] for part in parts.values() for row in part["rows"])
    return [
        row
        | {
            "key": f"{name}/{row['key']}",
            "name": f"{name}: {row['name']}" if named[row["name"]] > 1 else row["name"],
        }
        for name, part in parts.items()
        for row in part["rows"]
    ]


def unique_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Each folder's name, with as many of those above it as tell it from the others.

    Keys are the folders, absolute, in order; one that is given twice is there once.
    """
    depths = {folder.expanduser().resolve(): 1 for folder in folders}
    while True:
        names = {folder: "/".join(folder.parts[-depth:]) for folder, depth in depths.items()}
        count = Counter(names.values())
        clashing = [folder for folder, name in names.items() if count[name] > 1]
        if not clashing:
            return names
        depths |= {folder: depths[folder] + 1 for folder in clashing}


def _part(folder: Path, name: str) -> dict[str, Any]:
    if (folder / RESULTS).exists():
        results = load_results(folder)
        for row in results["rows"]:
            row["reconstructions"] = [
                {kind: str(folder / path) for kind, path in triple.items()}
                for triple in row.get("reconstructions") or ()
            ]
        return results
    if not (folder / CONFIG).exists():
        raise UserError(
            f"nothing to report in {folder}: expected {RESULTS} (of `occinv reproduce`) or "
            f"{CONFIG} (of a run)"
        )
    experiment, _ = _read(folder)
    row = {"key": "run", "name": name, **_row(folder, experiment)}
    size = vit.make_vit(experiment.encoder, experiment.data.image_size)
    return {
        "settings": {
            "data": experiment.data.eval_source or experiment.data.source,
            "encoder": f"ViT of {size.depth} blocks, {size.width} wide, patches of "
            f"{size.patch_size}² pixels",
        },
        "columns": [column for column in COLUMNS if row["values"][column["key"]]],
        "rows": [row],
    }


def _row(folder: Path, experiment: schema.Experiment) -> dict[str, Any]:
    """A run as a row; one on labels has T1, T2, target and M of the run that it starts from."""
    stage = ON_LABELS.get(str(experiment.objective["name"]), "pretrain")
    stages: dict[str, Any] = dict.fromkeys(STAGES) | {stage: describe_run(folder)}
    found: Path | None = folder
    if stage != "pretrain" and experiment.init_from is not None:
        start = Path(experiment.init_from).expanduser()
        found = next((p for p in (start, *start.parents[:2]) if (p / CONFIG).exists()), None)
        stages["pretrain"] = {} if found is None else describe_run(found)
    objective = objective_of(found or folder)
    is_pretrained = stages["pretrain"] is not None
    top1 = (_json(folder / RESULT).get("metrics") or {}).get("top1")
    psnr, knn = (_json(folder / "evaluate" / f"{name}.json") for name in ("psnr", "knn"))
    curves = _curves(folder)
    is_complete = (folder / RESULT).exists() or _is_imported(folder)
    return {
        "framework": objective.framework if is_pretrained else "–",
        "transformation": "patch masking" if "removed" in objective.axes.t1 else "–",
        **objective.axes._asdict(),
        "status": "done" if is_complete else "running",
        "error": None,
        **stages,
        "values": {
            "top1": [top1] if top1 is not None else [],
            "knn": [knn["top1"]] if knn else [],
            "psnr": [psnr["whole"]] if psnr else [],
            "psnr_removed": [psnr["removed"]] if psnr else [],
        },
        "paper": {},
        "paper_epochs": None,
        "cka": {
            "pretrained": None if stage == "finetune" else curves,
            "finetuned": curves if stage == "finetune" else None,
        },
        "reconstructions": pictures(folder / "evaluate" / "reconstructions"),
    }


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _curves(workdir: Path) -> dict[str, Any] | None:
    """The CKA curves of this run, in a file that may hold those of others too."""
    models = _json(workdir / "evaluate" / "cka.json").get("models")
    if not models:
        return None
    own = (m for m in models if workdir in (p := Path(m["workdir"]).resolve(), *p.parents))
    # The file is written beside the first model, whatever the path to it was then.
    model = next(own, models[0])
    return {key: model[key] for key in ("ratios", "blocks", "values")}


def _is_imported(workdir: Path) -> bool:
    """Whether the weights are somebody else's: a training saves none before its first step."""
    return (workdir / CHECKPOINTS / "0").exists()


def _read(workdir: Path) -> tuple[schema.Experiment, int]:
    """A run's experiment and how many classes it has. Raises UserError if there is none."""
    path = workdir / CONFIG
    try:
        stored = json.loads(path.read_text())
        return schema.resolve(stored["experiment"]), len(stored["classes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the config of a run: {error!r}") from None


def objective_of(workdir: Path) -> Objective:
    """The objective of a run. Raises UserError if there is none in `workdir`."""
    experiment, num_classes = _read(workdir)
    encoder = vit.make_vit(experiment.encoder, experiment.data.image_size)
    return make_objective(experiment.objective, Setting(encoder, num_classes, total_steps=1))


def describe_run(
    workdir: Path,
    experiment: schema.Experiment | None = None,
    command: str | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """How a run is run, and how it went: a stage of a row.

    Args:
      experiment: what is to run there, where it may not have begun; None: what does.
      command: that repeats it, if known. seconds: in which it has run, if known.

    Returns:
      `duration` (None for imported weights), `command`, `config` (JSON text), `seconds`,
      `parameters` (their number, None before the first step), and as [step, value] `loss` and
      `accuracy` (in [0, 1]).

    Raises:
      UserError: no experiment is given, and there is no run in `workdir`.
    """
    if experiment is None:
        experiment, _ = _read(workdir)
    lines = read_scalars(workdir / METRICS) if (workdir / METRICS).exists() else []
    return {
        "duration": None if _is_imported(workdir) else str(experiment.train.duration),
        "command": command,
        "config": json.dumps(as_json(experiment), indent=1),
        "seconds": seconds,
        "parameters": next((line["parameters"] for line in lines if "parameters" in line), None),
        "loss": [[line["step"], line["loss"]] for line in lines if "loss" in line],
        "accuracy": [[line["step"], line["eval/top1"]] for line in lines if "eval/top1" in line],
    }


def pictures(folder: Path) -> list[dict[str, str]]:
    """Absolute paths of the reconstructions in a folder: `original`, `masked`, `reconstructed`."""
    folder = folder.absolute()
    numbers = sorted(int(path.name.split("_")[0]) for path in folder.glob("*_original.png"))
    return [
        {kind: str(folder / f"{number}_{kind}.png") for kind in Triple._fields}
        for number in numbers
    ]
