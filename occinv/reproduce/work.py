"""A whole table, from top to bottom: choose rows, run what is missing, measure, report.

trial     a method with a seed. Its folder has a lock, so that several workers share a table
run       its trainings, each of which goes on where it was
measure   CKA, PSNR and pictures of its encoders
report    results.json after every trial; the page and the table at the end or when stopped
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Sequence

import jax
from rich.console import Console

from occinv.evaluators import run as measure
from occinv.parallel import from_first_process
from occinv.progress import Progress
from occinv.report.html import write_html
from occinv.report.matrix import print_results
from occinv.reproduce.collect import collect
from occinv.reproduce.definition import Row
from occinv.reproduce.lock import locked
from occinv.reproduce.trial import FAILED, MEASURING, SECONDS, TITLES, Plan, Trial, trials_of
from occinv.schema import UserError
from occinv.train.loop import NonFinite, train
from occinv.train.workdir import RESULT, check_folder, check_same, write_json

PICTURES = 6  # reconstructions of each model


@dataclasses.dataclass(frozen=True)
class Share:
    """Worker `number` of `count` begins with its own part of the trials."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise UserError(f"--jobs {self.number} of {self.count}, expected 1 to {self.count}")

    @classmethod
    def parse(cls, words: Sequence[str]) -> Share:
        """From `2 of 4`. Raises UserError."""
        if len(words) != 3 or words[1] != "of" or not (words[0] + words[2]).isdecimal():
            raise UserError(f"--jobs {' '.join(words)}, expected K of N, such as 2 of 4")
        return cls(int(words[0]), int(words[2]))


class Stopped(Exception):
    """A signal asked to stop, and everything is saved."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


def reproduce(
    plan: Plan,
    rows: Sequence[Row],
    seeds: int,
    command: str,
    share: Share = Share(),
    console: Console | None = None,
) -> int:
    """Runs and measures what is missing, and reports: the exit status.

    Every worker that is given the same plan and folder takes the trials that nobody else works on,
    so a row is done once however many there are, and what a killed worker has left is taken up.

    Args:
      seeds: each row is run with seeds 0 to `seeds` - 1.
      command: for the report: what was typed.
      console: where progress is shown.

    Returns:
      0; 1 if a row failed; 128 + the number of a signal that stopped it.

    Raises UserError for less than one seed, a config that cannot be, data that is not there, and
    a workdir that is a file, before anything is written.
    """
    if seeds < 1:
        raise UserError(f"--seeds {seeds}, expected 1 or more")
    trials = trials_of(plan, rows, seeds)
    if not trials:
        raise UserError("no row to run, only published figures")
    collect(plan, rows, seeds, command)
    check_folder(plan.workdir)
    plan.workdir.mkdir(parents=True, exist_ok=True)
    # Fine-tuning is the same program in every row: compile it once, and never again on a restart.
    cache = plan.workdir.absolute() / "compiled" / platform.node()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

    def report(is_last: bool) -> bool:
        """Writes what stands there now: whether every row is done."""
        folder = plan.folder
        # Or else a worker could replace what another has found meanwhile by what it knew before.
        with locked(folder / ".lock", wait=True):
            results = collect(plan, rows, seeds, command)
            if jax.process_index() == 0:
                write_json(folder / "results.json", results)
                if is_last:
                    write_html(results, folder)
        if is_last and jax.process_index() == 0:
            print_results(results)
        return all(row["status"] == "done" for row in results["rows"])

    first = (share.number - 1) * len(trials) // share.count
    with Progress(sum(trial.cost for trial in trials), console) as progress:
        try:
            left = [*trials[first:], *trials[:first]]
            while left:
                busy = []
                for trial in left:
                    if take(trial, progress):
                        report(is_last=False)
                    else:
                        busy.append(trial)
                if len(busy) == len(left):
                    progress.say(f"{len(busy)} left to other workers: {', '.join(map(str, busy))}")
                    break
                left = busy
        except Stopped as stopped:
            report(is_last=True)
            progress.say("stopped and saved; run the same command to go on")
            return 128 + stopped.signal
    is_done = report(is_last=True)
    progress.say(f"report: {plan.folder / 'report.html'}")
    return 0 if is_done or left else 1


def take(trial: Trial, progress: Progress) -> bool:
    """Runs and measures a trial unless another worker has it: whether it is done with.

    Raises Stopped, and UserError where other trainings have been done in the trial's place.
    """
    # Another worker may finish it at this very moment: all processes must see the same.
    if from_first_process(lambda: int(trial.is_done)):
        for stage in trial.stages.values():
            check_same(stage.workdir, stage.experiment)
        progress.done(trial.cost)
        return True
    with locked(trial.folder / ".lock") as is_ours:
        if is_ours:
            run(trial, progress)
        return is_ours


def run(trial: Trial, progress: Progress) -> None:
    """The trainings of a trial and what is measured of them. Raises Stopped.

    A training whose loss is no number is noted in the trial's folder, and the others go on.
    """
    (trial.folder / FAILED).unlink(missing_ok=True)
    for kind, stage in trial.stages.items():
        name = f"{trial}, {TITLES[kind]}"
        is_finished, begun = (stage.workdir / RESULT).exists(), time.monotonic()
        try:
            outcome = train(
                stage.experiment, stage.workdir, progress.stage(name, trial.costs[kind])
            )
        except NonFinite as error:
            write_json(trial.folder / FAILED, {"run": kind, "error": str(error)})
            progress.say(f"{name}: {error}")
            return
        if is_finished:
            progress.done(trial.costs[kind])
        else:
            spent = stage.seconds + time.monotonic() - begun
            write_json(stage.workdir / SECONDS, spent)
        if outcome.stopped_by is not None:  # be it at its last step: the next is not begun
            raise Stopped(outcome.stopped_by)
    for name, path in trial.measured.items():
        if not path.exists():
            MEASURES[name](trial, path)
    progress.done(MEASURING)


MEASURES = {
    "cka_pretrained": lambda trial, path: measure.evaluate_cka([trial.encoder], out=path),
    "cka_finetuned": lambda trial, path: measure.evaluate_cka(
        [trial.stages["finetune"].workdir], out=path
    ),
    "reconstructions": lambda trial, path: measure.evaluate_reconstruct(
        trial.encoder, PICTURES, out=path
    ),
    "psnr": lambda trial, path: measure.evaluate_psnr(trial.encoder, out=path),
}
