"""Runs as flat dicts, for pandas and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from occinv.paths import as_path
from occinv.report.measured import Columns, records_of
from occinv.report.read_run import read_axes, read_config, unique_names
from occinv.schema import UserError
from occinv.train.workdir import as_json, differences


def compare(runs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return one flat dict for each run: what it is, how it differs, and what was measured.

    `pandas.DataFrame(occinv.compare(runs))` is a table of them.

    Args:
      runs: Workdirs.

    Returns:
      Dicts with equal keys in the order of `runs`, each workdir once. `run` is a short unique name.
      `workdir`, `objective`, `t1`, `t2`, `target`, `measure` and `seed` follow, then each field of
      the config in which the runs differ, such as `objective.mask_ratio`, then each number of the
      evaluators, such as `knn/top1`; None: not measured. Numbers are under one key only if they
      were made on the same images in the same way; others are under `knn/top1 (2)`.

    Raises:
      UserError: No run is given, or one of them is not a run.

    Example:
      >>> import occinv
      >>> (row,) = occinv.compare(["runs/mae"])
      >>> row["run"], row["objective"], row["target"], row["seed"]
      ('mae', 'mae', 'pixels', 0)
    """
    if isinstance(runs, (str, Path)) or not runs:
        raise UserError(f"runs={runs!r}, expected a list of one or more workdirs")
    names = unique_names([as_path(run) for run in runs])
    configs = {folder: read_config(folder) for folder in names}
    fields = {folder: as_json(experiment) for folder, (experiment, _) in configs.items()}
    first, *others = fields.values()
    changed = {path for other in others for path, *_ in differences(first, other)}
    records = {folder: records_of(folder, "training") for folder in names}
    columns = Columns(record for found in records.values() for record in found)
    rows = []
    for folder, name in names.items():
        experiment, axes = configs[folder][0], read_axes(folder)
        row: dict[str, Any] = {
            "run": name,
            "workdir": str(folder),
            "objective": str(experiment.objective["name"]),
            "t1": axes.t1,
            "t2": axes.t2,
            "target": axes.target,
            "measure": axes.measure,
            "seed": experiment.seed,
        }
        row |= {path: _field(fields[folder], path) for path in sorted(changed - {"seed"})}
        for record in records[folder]:
            number = columns.number(record)
            suffix = f" ({number + 1})" if number else ""
            label = record.evaluator
            row |= {f"{label}/{key}{suffix}": value for key, value in record.values.items()}
        rows.append(row)
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _field(config: Any, path: str) -> Any:
    """Return the value at a path of a config; None if it is not there."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config
