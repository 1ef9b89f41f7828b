"""Arguments of `occinv reproduce` that need more than argparse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from occinv.objectives.base import Reconstructs
from occinv.paths import as_path
from occinv.report.read_run import read_objective
from occinv.report.results import STAGES
from occinv.reproduce.methods import Method
from occinv.reproduce.specs import RowSpec
from occinv.schema import UserError, nearest

MOST_SEEDS = 1000


class Worker(NamedTuple):
    """Worker `number` (from 1) of `total` workers that share a workdir."""

    number: int
    total: int


ONLY_WORKER = Worker(1, 1)


def check_seeds(seeds: int) -> None:
    """Raise UserError unless so many seeds can be run."""
    if not 1 <= seeds <= MOST_SEEDS:
        raise UserError(f"--seeds {seeds}, expected 1 or more, up to {MOST_SEEDS}")


def parse_jobs(words: Sequence[str] | None) -> Worker:
    """Parse `--jobs K of N`; None is the only worker.

    Raises:
      UserError: Another form, or K is not in 1 to N.
    """
    if words is None:
        return ONLY_WORKER
    numbers = all(w.isdecimal() and len(w) < 10 for w in words[::2])
    if len(words) != 3 or words[1] != "of" or not numbers:
        raise UserError(f"--jobs {' '.join(words)}, expected K of N, such as 2 of 4")
    worker = Worker(int(words[0]), int(words[2]))
    if not 1 <= worker.number <= worker.total:
        raise UserError(f"--jobs {' '.join(words)}, expected 1 to {worker.total}")
    return worker


def parse_overrides(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse `--config.FIELD=VALUE` for every stage, and `--STAGE.FIELD=VALUE` for one.

    Returns:
      `FIELD=VALUE` by stage or `config`.

    Raises:
      UserError: Any other argument.
    """
    stages = ("config", *STAGES)
    found: dict[str, tuple[str, ...]] = {}
    for argument in arguments:
        stage, dot, field = argument.removeprefix("--").partition(".")
        if not argument.startswith("--") or not dot or "=" not in field:
            raise UserError(
                f"unknown argument {argument!r}, expected --config.section.field=value, or "
                f"--{{{','.join(STAGES)}}}.section.field=value for one kind of run"
            )
        if stage not in stages:
            raise UserError(f"unknown argument {argument!r}{nearest(stage, stages)}")
        found[stage] = (*found.get(stage, ()), field)
    return found


def parse_added_row(argument: str) -> RowSpec:
    """Parse `--add NAME=WORKDIR`: a row for the encoder of a run or of imported weights.

    Raises:
      UserError: Another form, or the workdir does not contain a run.
    """
    name, _, folder = argument.partition("=")
    if not name or not folder:
        raise UserError(f"--add {argument!r}, expected NAME=WORKDIR")
    workdir = as_path(folder)
    objective = read_objective(workdir)
    masks = "removed" in objective.axes.t1
    key = "".join(c if c.isalnum() else "_" for c in name.lower())
    method = Method(
        f"added_{key}",
        None,
        transformation="patch masking" if masks else objective.axes.t1,
        reconstructs=masks and isinstance(objective, Reconstructs),
        workdir=workdir,
    )
    return RowSpec(name, method, epochs=None, row_key=key)
