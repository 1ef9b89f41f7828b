"""`occinv report`: results of `occinv reproduce` and workdirs of single runs in one table."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from occinv import schema
from occinv.config import CONFIG, find_workdir
from occinv.evaluators.base import Record
from occinv.report.checks import without_control_codes
from occinv.report.html import write_html
from occinv.report.matrix import print_results
from occinv.report.measured import Columns, curves_of, fill, floor_rows, records_of
from occinv.report.read_run import (
    encoder_text,
    is_imported,
    last_loss,
    picture_paths,
    read_axes,
    read_config,
    read_stage,
    set_axes,
    unique_names,
)
from occinv.report.results import (
    ENCODERS,
    FILE,
    MISSING,
    Column,
    Results,
    Row,
    Settings,
    StageRecord,
    load_results,
    setting_name,
)
from occinv.schema import UserError
from occinv.train.records import FOLDER
from occinv.train.workdir import RESULT, as_json, differences, read_result

# The stage of a run whose objective trains on labels. Every other objective pretrains.
OBJECTIVE_STAGES = {"classification": "finetune", "linear_probe": "linear"}
# Fields in which runs of one method differ: they are seeds of one row.
OF_A_SEED = ("seed", "init_from")


@dataclasses.dataclass(frozen=True)
class Run:
    """A workdir as it was read.

    Attributes:
      folder, name: The workdir, and its short name.
      experiment: Its config.
      stage: A key of `STAGES`.
      pretrained: The workdir that it starts from, if it is still there.
      records: The records of its evaluators.
    """

    folder: Path
    name: str
    experiment: schema.Experiment
    stage: str
    pretrained: Path | None
    records: list[Record]

    @property
    def method(self) -> str:
        """A text that is equal for the seeds of one method: the configs, without the seed."""
        configs = [self.experiment]
        if self.pretrained is not None:
            configs.append(read_config(self.pretrained)[0])
        return json.dumps([_without_seed(config) for config in configs], sort_keys=True)


def _without_seed(experiment: schema.Experiment) -> dict[str, Any]:
    return {name: v for name, v in as_json(experiment).items() if name not in OF_A_SEED}


def report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Print the table of `compare(folders)`, and write the page.

    Args:
      folders: As `compare`.
      out: The file of the page. None writes into the first folder: `report.html` if it is the only
        one and has results, else `comparison.html`.

    Returns:
      The path of the page.

    Raises:
      UserError: As `compare`, or `out` is a folder, or its folder cannot be created.
    """
    results = compare(folders)
    is_single = len(unique_names(folders)) == 1 and (folders[0] / FILE).exists()
    if out is not None:
        _make_folder_of(out)
        results.command += "" if is_single else f" --out {out}"
    print_results(results)
    page = out or folders[0] / ("report.html" if is_single else "comparison.html")
    return write_html(results, page.parent, page.name)


def _make_folder_of(out: Path) -> None:
    """Create the folder of the page.

    Raises:
      UserError: `out` is a folder, or its folder cannot be created.
    """
    if out.is_dir():
        raise UserError(f"--out {out} is a folder. Give a file, such as {out / 'report.html'}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot create {out.parent}: {error.strerror}.") from None


def compare(folders: Sequence[Path]) -> Results:
    """Collect the rows of several folders. Control codes in their texts become spaces.

    Args:
      folders: Folders with `results.json`, which contribute all their rows, and workdirs of runs.
        Runs whose configs differ in the seed alone are one row. Rows with equal names get the
        folder's name as a prefix.

    Returns:
      The results of a single folder unchanged, else all rows. Paths of pictures are absolute.

    Raises:
      UserError: No folder is given, or one of them contains neither.
    """
    return without_control_codes(_compare(folders))


def _compare(folders: Sequence[Path]) -> Results:
    names = unique_names(folders)
    if not names:
        raise UserError(f"no folder given. Give workdirs of runs or folders with {FILE}")
    tables = {name: folder for folder, name in names.items() if (folder / FILE).exists()}
    parts = {name: _read_table(folder) for name, folder in tables.items()}
    runs = [_read_run(folder, name) for folder, name in names.items() if name not in tables]
    if runs:
        parts["runs"] = _results_of_runs(runs)
    elif len(parts) == 1:
        return next(iter(parts.values()))
    settings, different = _merge_settings(parts)
    same_data = not {"data", "images"} & set(different)
    if not same_data:
        parts = {name: _with_own_columns(part, name) for name, part in parts.items()}
    columns: dict[str, Column] = {}
    for part in parts.values():
        columns |= {c.key: c for c in part.columns if c.key not in columns}
    notes = [note for part in parts.values() for note in part.notes] + [*different.values()]
    if not same_data and sum(bool(part.cka_encoders) for part in parts.values()) > 1:
        notes.append("CKA is measured on different images, so compare it within a folder only.")
    return Results(
        title="comparison",
        subject="Comparison of runs",
        columns=list(columns.values()),
        rows=_merge_rows(parts),
        command=f"occinv report {' '.join(map(str, folders))}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings,
        same_data=same_data and all(part.same_data for part in parts.values()),
        paper_setting="; ".join(dict.fromkeys(p.paper_setting for p in parts.values() if p.title)),
        notes=list(dict.fromkeys(notes)),
        claims=[
            dataclasses.replace(claim, row=f"{name}/{claim.row}", than=f"{name}/{claim.than}")
            for name, part in parts.items()
            for claim in part.claims
        ],
    )


def _with_own_columns(part: Results, name: str) -> Results:
    """Rename the columns of a part, because its numbers were measured on other data."""

    def own(key: str) -> str:
        return f"{key} {name}"

    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {own(key): value for key, value in values.items()}

    return dataclasses.replace(
        part,
        columns=[
            dataclasses.replace(c, key=own(c.key), heading=f"{c.heading} ({name})")
            for c in part.columns
        ],
        rows=[
            dataclasses.replace(
                row,
                values=renamed(row.values),
                hits=renamed(row.hits),
                seeds=row.seeds | renamed(row.seeds),
                paper=renamed(row.paper),
                on_training=[own(key) for key in row.on_training],
            )
            for row in part.rows
        ],
        claims=[dataclasses.replace(claim, column=own(claim.column)) for claim in part.claims],
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
            notes[key] = f"Different {setting_name(key)}: {each}."
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


def _read_table(folder: Path) -> Results:
    """Read `results.json`, with absolute paths of pictures."""
    results = load_results(folder)
    for row in results.rows:
        row.reconstructions = [
            {kind: str(folder / path) for kind, path in triple.items()}
            for triple in row.reconstructions
        ]
    return results


def _read_run(folder: Path, name: str) -> Run:
    if not (folder / CONFIG).exists():
        raise UserError(
            f"{folder} contains neither {FILE} nor {CONFIG}. Give a folder of `occinv reproduce` "
            "or the workdir of a run"
        )
    experiment, _ = read_config(folder)
    try:
        encoder_text(experiment)
        read_axes(folder)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    stage = OBJECTIVE_STAGES.get(str(experiment.objective["name"]), "pretrain")
    pretrained = None
    if stage != "pretrain" and experiment.init_from is not None:
        pretrained = find_workdir(experiment.init_from)
    return Run(folder, name, experiment, stage, pretrained, records_of(folder, stage))


def _results_of_runs(runs: Sequence[Run]) -> Results:
    """The rows of several workdirs: one for each method, with a value for each seed."""
    columns = Columns(record for run in runs for record in run.records)
    methods = _seeds_of_methods(runs)
    rows = [_row_of_seeds(members, columns) for members in methods]
    rows += floor_rows(made[0] for made in columns.makings.get("invariance", [])[:1])
    data = {run.experiment.data.eval_source or run.experiment.data.source for run in runs}
    encoders = {encoder_text(run.experiment) for run in runs}
    settings: Settings = {"data": "; ".join(sorted(data)), "encoder": "; ".join(sorted(encoders))}
    counts = {
        record.images.count
        for run in runs
        for record in run.records
        if record.evaluator == run.stage
    }
    if len(counts) == 1:
        settings["num_test"] = counts.pop()
    notes = config_notes([members[0] for members in methods]) + _other_curves(runs, columns)
    notes += _unmeasured([run for run in runs if not run.records])
    return Results(
        title="",
        columns=columns.columns,
        rows=rows,
        settings=settings,
        same_data=len(data) == 1,
        notes=notes,
    )


def _unmeasured(runs: Sequence[Run]) -> list[str]:
    """A sentence with the last losses of runs without an accuracy or a record of an evaluator."""
    found = []
    for run in runs:
        result = read_result(run.folder) or {"metrics": {}}
        losses = {"training": last_loss(run.folder), "validation": result["metrics"].get("loss")}
        known = [
            f"{part} loss {loss:.4g}" if loss is not None else f"no {part} loss"
            for part, loss in losses.items()
        ]
        found.append(f"{run.name} ({', '.join(known)})")
    return [f"Not measured by an evaluator: {'; '.join(found)}."] if found else []


def _seeds_of_methods(runs: Sequence[Run]) -> list[list[Run]]:
    """Group the runs that differ in the seed alone, each seed once, sorted by the seed."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            seeds = {other.experiment.seed for other in group}
            if group[0].method == run.method and run.experiment.seed not in seeds:
                group.append(run)
                break
        else:
            groups.append([run])
    return [sorted(group, key=lambda run: run.experiment.seed) for group in groups]


def _is_main(record: Record, columns: Columns) -> bool:
    """Whether a record of invariance is made like most others, so that its curves are shown."""
    return record.evaluator == "invariance" and columns.number(record) == 0


def _other_curves(runs: Sequence[Run], columns: Columns) -> list[str]:
    """A sentence for each run whose CKA is not shown, because it was measured in another way."""
    return [
        f"The CKA of {run.name} is not shown: {columns.describe(record)}."
        for run in runs
        for record in run.records
        if record.evaluator == "invariance" and not _is_main(record, columns)
        if not any(_is_main(other, columns) for other in run.records)
    ]


def _row_of_seeds(runs: Sequence[Run], columns: Columns) -> Row:
    """The row of one method, with the axes of the pretraining if it starts from one."""
    first = runs[0]
    others = len(runs) - 1
    name = first.name + (f" and {others} more seed{'s' * (others > 1)}" if others else "")
    row = Row(name, first.name, cka=dict.fromkeys(ENCODERS))
    setattr(row, first.stage, read_stage(first.folder))
    if first.stage != "pretrain" and first.experiment.init_from is not None:
        known = first.pretrained
        row.pretrain = StageRecord() if known is None else read_stage(known)
    set_axes(row, read_axes(first.pretrained or first.folder))
    row.transformation = "patch masking" if "removed" in row.t1 else MISSING
    is_done = all((r.folder / RESULT).exists() or is_imported(r.folder) for r in runs)
    row.status = "done" if is_done else "running"
    for run in runs:
        fill(row, run.records, columns, run.experiment.seed)
    encoder = "finetuned" if first.stage == "finetune" else "pretrained"
    measured = {
        run.experiment.seed: record
        for run in runs
        for record in run.records
        if _is_main(record, columns)
    }
    row.cka[encoder], row.seeds[encoder] = curves_of([*measured.values()]), [*measured]
    row.reconstructions = picture_paths(first.folder / FOLDER / "reconstructions")
    return row


def config_notes(runs: Sequence[Run]) -> list[str]:
    """A sentence for each config field in which runs differ, or the pretrainings of their encoders.

    The fields of objectives count only if all runs, or all pretrainings, have the same one.
    """
    own = {run.name: run.experiment for run in runs}
    before = {run.name: read_config(run.pretrained)[0] for run in runs if run.pretrained}
    return _differing_fields(own) + _differing_fields(before, " of the pretraining")


def _differing_fields(experiments: Mapping[str, schema.Experiment], of: str = "") -> list[str]:
    configs = {name: _without_seed(experiment) for name, experiment in experiments.items()}
    is_one = len({config["objective"]["name"] for config in configs.values()}) == 1
    hidden = ("evals.",) if is_one else ("objective.", "evals.")
    differing = {
        field
        for first, other in itertools.pairwise(configs.values())
        for field, _, _ in differences(first, other)
        if not field.startswith(hidden)
    }
    notes = []
    for field in sorted(differing):
        values = {name: _field(config, field.split(".")) for name, config in configs.items()}
        if len(set(map(str, values.values()))) > 1:
            each = ", ".join(f"{name} {value}" for name, value in values.items())
            notes.append(f"Different {field}{of}: {each}.")
    return notes


def _field(config: Any, path: Sequence[str]) -> Any:
    for name in path:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config
