"""A sweep: one config with several settings and seeds, run like the trials of a table."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from occinv.config import parse
from occinv.evaluators.base import make_evaluator
from occinv.report.compare import OBJECTIVE_STAGES
from occinv.report.read_run import last_loss
from occinv.report.sweep import FILE, Measured, SweepResults, choose_metric, print_sweep, write_page
from occinv.reproduce.options import ONLY_WORKER, Worker, check_seeds
from occinv.reproduce.run import FAILED, Measurement, Stage, Work, load_experiment, read_failure
from occinv.reproduce.run_table import Written, run_all
from occinv.schema import UserError
from occinv.train.check import check_config, read_evals
from occinv.train.disk import write_json
from occinv.train.lock import locked
from occinv.train.records import FOLDER, read_records, record_file
from occinv.train.workdir import read_result

Setting = dict[str, Any]  # values by the path of a field

MOST_SETTINGS = 10_000
LONGEST_NAME = 180  # bytes, of the 255 that file systems allow


@dataclass(frozen=True)
class Sweep:
    """Everything that decides what `occinv sweep` runs.

    Attributes:
      config: The config, as for `occinv train`.
      settings: The settings, each with its own values of some fields.
      workdir: The folder of the runs and of the report.
      seeds: Each setting runs with so many seeds, from that of the config on.
      overrides: `--config.FIELD=VALUE` for every run. A setting wins over them.
      metric: The name of the metric to compare; None: the first of `METRICS` that is measured. The
        evaluator of `LABEL/VALUE` measures the runs that it has not measured, finished ones too.
      command: The typed command, for the report.
    """

    config: str
    settings: tuple[Setting, ...]
    workdir: Path
    seeds: int = 1
    overrides: tuple[str, ...] = ()
    metric: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        check_seeds(self.seeds)
        for name, count in Counter(self.names).items():
            if count > 1:
                raise UserError(f"the sweep has the setting {name} {count} times; give each once")

    @property
    def fields(self) -> list[str]:
        """The paths of the fields that any setting sets."""
        return list(dict.fromkeys(path for setting in self.settings for path in setting))

    @property
    def names(self) -> list[str]:
        """The name of each setting: its values."""
        labels = short_names(self.fields)
        return [setting_name(setting, labels) for setting in self.settings]

    @property
    def runs(self) -> list[SweepRun]:
        """The runs: all settings with the first seed, then with the second."""
        first = load_experiment(self.config, self.overrides).seed
        return [
            SweepRun(self, setting, name, seed)
            for seed in range(first, first + self.seeds)
            for setting, name in zip(self.settings, self.names, strict=True)
        ]


@dataclass(frozen=True)
class SweepRun(Work):
    """One setting with one seed."""

    sweep: Sweep
    setting: Setting
    name: str
    seed: int

    def __str__(self) -> str:
        return self.folder.name

    @property
    def folder(self) -> Path:
        return self.sweep.workdir / ",".join(filter(None, [self.name, f"seed={self.seed}"]))

    @functools.cached_property
    def stage(self) -> Stage:
        """The training."""
        values = {**self.setting, "seed": self.seed}
        own = (f"--config.{path}={value!r}" for path, value in values.items())
        return Stage(self.sweep.config, (*self.sweep.overrides, *own), self.folder)

    @functools.cached_property
    def evaluators(self) -> dict[str, Measurement]:
        """The evaluators by label: those of the config, and the one of the metric."""
        found = {
            each.label: Measurement(each.name, each.evaluator, self.folder)
            for each in read_evals(self.stage.experiment)
        }
        label, slash, _ = (self.sweep.metric or "").rpartition("/")
        if slash and label not in {record_file(self.folder, each).stem for each in found}:
            found[label] = Measurement(label, make_evaluator(label, {}), self.folder)
        return found

    @property
    def evaluations(self) -> dict[str, Path]:
        return {label: record_file(self.folder, label) for label in self.evaluators}

    def measurement(self, name: str) -> Measurement:
        return self.evaluators[name]

    @functools.cached_property
    def stages(self) -> dict[str, Stage]:
        objective = str(self.stage.experiment.objective["name"])
        return {OBJECTIVE_STAGES.get(objective, "pretrain"): self.stage}


def run_sweep(sweep: Sweep, worker: Worker = ONLY_WORKER, console: Console | None = None) -> int:
    """Run what a sweep lacks, and report. Workers share the work as in `reproduce`.

    Returns:
      0; 1 if a run failed; 128 + the number of the signal that stopped it.

    Raises:
      UserError: A setting is wrong, the data are missing, or the workdir is a file.
    """
    runs = sweep.runs
    for run in runs[: len(sweep.settings)]:
        try:
            check_config(run.stage.experiment)
            run.evaluators  # noqa: B018 (raises for a metric of an unknown evaluator)
        except UserError as error:
            raise UserError(f"{run.name or 'the sweep'}: {error}") from None
    collect(sweep, runs)
    write = functools.partial(write_report, sweep, runs)
    return run_all(runs, sweep.workdir, write, worker, console)


def write_report(sweep: Sweep, runs: Sequence[SweepRun], is_last: bool) -> Written:
    """Write the results so far, and the page if `is_last`."""
    with locked(sweep.workdir / ".lock", wait=True):
        results = collect(sweep, runs)
        if jax.process_index() == 0:
            write_json(sweep.workdir / FILE, results.as_json())
            if is_last:
                write_page(results, sweep.workdir)
    if is_last and jax.process_index() == 0:
        print_sweep(results)
    is_done = all(value is not None for each in results.settings for value in each.values)
    return Written(is_done, sweep.workdir / "report.html")


def collect(sweep: Sweep, runs: Sequence[SweepRun]) -> SweepResults:
    """Read the metrics of all runs so far, grouped by setting.

    Raises:
      UserError: No complete run has the metric of the sweep.
    """
    found = {run.folder: read_metrics(run.folder) if run.is_done else {} for run in runs}
    metric = choose_metric(sweep.metric, [metrics for metrics in found.values() if metrics])
    settings = []
    for setting, name in zip(sweep.settings, sweep.names, strict=True):
        own = [run for run in runs if run.name == name]
        failed = [run.folder / FAILED for run in own if (run.folder / FAILED).exists()]
        settings.append(
            Measured(
                name or "the config",
                setting,
                [found[run.folder].get(metric) for run in own],
                own[0].stage.command,
                read_failure(failed[0]) if failed else None,
            )
        )
    return SweepResults(
        config=sweep.config,
        metric=metric,
        fields=sweep.fields,
        seeds=[run.seed for run in runs if run.name == runs[0].name],
        settings=settings,
        command=sweep.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def read_metrics(workdir: Path) -> dict[str, float]:
    """Return the last evaluation of a complete run; `{}` if it is not complete.

    Values of evaluators have the name `LABEL/VALUE`, as in TensorBoard. The last training loss has
    the name `train_loss`.
    """
    result = read_result(workdir)
    if result is None:
        return {}
    metrics: dict[str, float] = dict(result["metrics"])
    if (loss := last_loss(workdir)) is not None:
        metrics["train_loss"] = loss
    for path in sorted((workdir / FOLDER).glob("*.json")):
        for record in read_records(path):
            named = {f"{path.stem}/{name}": value for name, value in record.values.items()}
            metrics |= {name: value for name, value in named.items() if value is not None}
    return metrics


def read_settings(swept: Any, given: Iterable[str] = ()) -> tuple[Setting, ...]:
    """Return the settings of a sweep.

    Args:
      swept: What `sweep()` of a config file returns: a list of settings, or a mapping from fields
        to the lists of their values, whose product is the sweep; None: no such function.
      given: `FIELD=VALUE,VALUE,...` of the option `--set`. Each is a factor of the product.

    Raises:
      UserError: Another form, or neither is given.
    """
    fields: dict[str, Any] = {}
    for text in given:
        path, equals, values = text.partition("=")
        if not equals or not path or not values:
            raise UserError(f"--set {text!r}, expected FIELD=VALUE,VALUE,...")
        together = parse(f"({values},)")
        is_tuple = isinstance(together, tuple)
        fields[path] = together if is_tuple else tuple(map(parse, values.split(",")))
    if swept is None and not fields:
        raise UserError(
            "nothing to sweep: the config file has no function sweep(). Write one, or give "
            "--set FIELD=VALUE,VALUE,..."
        )
    settings = [{}] if swept is None else swept
    if isinstance(swept, Mapping):
        settings = product(swept)
    if not isinstance(settings, list | tuple) or not settings:
        raise UserError(f"sweep() returned {swept!r}, expected settings or a product of values")
    return tuple(
        check_setting({**setting, **more}) if isinstance(setting, Mapping) else _refuse(setting)
        for setting in settings
        for more in product(fields)
    )


def product(fields: Mapping[str, Any]) -> list[Setting]:
    """Return every combination of the values of fields; the last field changes fastest.

    Raises:
      UserError: A field has no list of values, or there are too many combinations.
    """
    for path, values in fields.items():
        if not isinstance(values, list | tuple) or not values:
            raise UserError(f"sweep: {path}={values!r}, expected a list of one or more values")
    if (count := math.prod(map(len, fields.values()))) > MOST_SETTINGS:
        raise UserError(f"sweep: {count} settings, expected up to {MOST_SETTINGS}; leave some out")
    return [dict(zip(fields, one, strict=True)) for one in itertools.product(*fields.values())]


def _refuse(setting: Any) -> Setting:
    raise UserError(f"sweep() has {setting!r}, expected a dict from fields to values")


def check_setting(setting: Setting) -> Setting:
    """Return the setting if each of its values can be an override of the command line.

    Raises:
      UserError: It sets the seed, or a value is not a Python literal.
    """
    for path, value in setting.items():
        if not isinstance(path, str):
            raise UserError(f"sweep: {path!r}={value!r}, expected the path of a field")
        if path == "seed":
            raise UserError(f"sweep: seed={value!r}; leave it out and give --seeds N")
        if repr(parse(repr(value))) != repr(value):  # an array has no single truth value
            raise UserError(f"sweep: {path}={value!r}, expected a Python literal such as 0.5")
    return setting


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the last part of each path, or more parts where two paths end alike."""
    ends = Counter(path.rpartition(".")[2] for path in paths)
    return {p: p if ends[p.rpartition(".")[2]] > 1 else p.rpartition(".")[2] for p in paths}


def setting_name(setting: Setting, labels: Mapping[str, str]) -> str:
    """Return `FIELD=VALUE,...` as the name of a folder.

    A name with other characters, or a long one, ends in a hash of the values.
    """
    name = ",".join(f"{labels[path]}={value}" for path, value in setting.items())
    short = re.sub(r"[^\w.,=+-]+", "_", name.replace(" ", ""), flags=re.ASCII)[:LONGEST_NAME]
    if short == name:
        return name
    return f"{short}_{hashlib.sha256(repr(setting).encode()).hexdigest()[:8]}"
