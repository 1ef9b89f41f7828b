"""Run a whole table or sweep: train and evaluate what is missing, then report.

1. A worker takes the lock of a trial, so that several workers can share a workdir.
2. It runs the trial's training stages, each of which resumes from its last checkpoint.
3. It evaluates the trial's encoders: CKA, PSNR and pictures.
4. It writes results.json after every trial, and the page at the end or when it is stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
from rich.console import Console

from occinv.evaluate import evaluate_run
from occinv.parallel import from_first_process
from occinv.paths import in_bucket
from occinv.progress import Progress
from occinv.report.html import write_html
from occinv.report.matrix import print_results
from occinv.report.results import FILE, STAGES
from occinv.reproduce.collect import collect_results
from occinv.reproduce.options import ONLY_WORKER, Worker
from occinv.reproduce.run import FAILED, SECONDS, TableRun, Work
from occinv.schema import UserError
from occinv.train.disk import write_json
from occinv.train.lock import locked
from occinv.train.loop import NonFinite, train
from occinv.train.workdir import RESULT, check_folder, check_same


class Stopped(Exception):
    """A signal stopped the run after it was saved."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Written(NamedTuple):
    """Whether every run of a report is complete, and the path of the page."""

    is_done: bool
    page: Path


def reproduce(run: TableRun, worker: Worker = ONLY_WORKER, console: Console | None = None) -> int:
    """Run and evaluate what a table lacks, and report.

    Workers with the same arguments and workdir share the work: each takes the trials that no other
    worker holds, including the unfinished trials of workers that were killed.

    Args:
      run: The table run.
      worker: Decides with which trial this worker starts.
      console: Where progress is printed; None is standard output.

    Returns:
      0; 1 if a row failed; 128 + the number of the signal that stopped it.

    Raises:
      UserError: No row can be run, a config is wrong, the data are missing, or the workdir is a
        file. Nothing has been written then.
    """
    trials = run.trials
    if not trials:
        raise UserError("--rows: the chosen rows only have published numbers. Add a row to run.")
    collect_results(run)
    return run_all(trials, run.workdir, functools.partial(write_report, run), worker, console)


def run_all(
    trials: Sequence[Work],
    workdir: Path,
    write_report: Callable[[bool], Written],
    worker: Worker = ONLY_WORKER,
    console: Console | None = None,
) -> int:
    """Run the trials that no other worker holds, and report after each that ran.

    Args:
      trials: The trials of all workers.
      workdir: The folder that the workers share.
      write_report: Writes what is measured so far. Its argument is whether this is the last time,
        which includes the page.
      worker: Decides with which trial this worker starts.
      console: Where progress is printed; None is standard output.

    Returns:
      The exit status, as `reproduce`.

    Raises:
      UserError: A config is wrong, the data are missing, or the workdir is a file.
    """
    check_folder(workdir)
    if in_bucket(workdir) and worker.total > 1:
        raise UserError(
            f"--jobs: workers share a folder by locks, and {workdir} is in a bucket without locks. "
            "Use one worker, or a folder on a disk."
        )
    workdir.mkdir(parents=True, exist_ok=True)
    # Runs of one shape are the same program. With the cache it is compiled once.
    cache = workdir.absolute() / "compiled" / platform.node()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

    first = (worker.number - 1) * len(trials) // worker.total
    left = [*trials[first:], *trials[:first]]
    with Progress(sum(trial.cost for trial in trials), console) as progress:
        try:
            while left:
                busy = []
                for trial in left:
                    number = trials.index(trial) + 1
                    match take_trial(trial, progress, f"run {number} of {len(trials)}"):
                        case "ran":
                            write_report(False)
                        case "busy":
                            busy.append(trial)
                if len(busy) == len(left):
                    names = ", ".join(map(str, busy))
                    progress.say(f"other workers hold the last runs: {names}")
                    break
                left = busy
        except Stopped as stopped:
            write_report(True)
            progress.say("stopped and saved. Run the same command to continue.")
            return 128 + stopped.signal
    is_done, page = write_report(True)
    progress.say(f"report: {page}")
    return 0 if is_done or left else 1


def write_report(run: TableRun, is_last: bool) -> Written:
    """Write the results so far, and the page if `is_last`."""
    # The lock keeps a worker from overwriting newer results of another worker.
    with locked(run.folder / ".lock", wait=True):
        results = collect_results(run)
        if jax.process_index() == 0:
            write_json(run.folder / FILE, dataclasses.asdict(results))
            if is_last:
                write_html(results, run.folder)
    if is_last and jax.process_index() == 0:
        print_results(results)
    is_done = all(row.status == "done" for row in results.rows)
    return Written(is_done, run.folder / "report.html")


def take_trial(trial: Work, progress: Progress, place: str) -> Literal["was done", "ran", "busy"]:
    """Run a trial unless it is done or another worker holds it. Print `place` and its name first.

    Returns:
      Whether it was done before, ran now, or is busy: another worker holds it.

    Raises:
      Stopped: A signal stopped it.
      UserError: The trial's folder contains runs of another experiment.
    """
    # All processes of a worker must agree, even if another worker finishes the trial just now.
    if from_first_process(lambda: int(trial.is_done)):
        for stage in trial.stages.values():
            check_same(stage.workdir, stage.experiment)
        progress.done(trial.cost)
        return "was done"
    with locked(trial.folder / ".lock") as is_ours:
        if not is_ours:
            return "busy"
        progress.say(f"{place}: {trial}")
        run_trial(trial, progress)
        return "ran"


def run_trial(trial: Work, progress: Progress) -> None:
    """Run the stages and the evaluations of a trial.

    A non-finite loss is recorded in the trial's folder and ends only this trial.

    Raises:
      Stopped: A signal stopped it.
    """
    (trial.folder / FAILED).unlink(missing_ok=True)
    for name, stage in trial.stages.items():
        title = f"{trial}, {STAGES[name].lower()}"
        was_finished, begin = (stage.workdir / RESULT).exists(), time.monotonic()
        watch = progress.stage(title, trial.costs[name])
        try:
            outcome = train(stage.experiment, stage.workdir, watch)
        except NonFinite as error:
            if jax.process_index() == 0:
                write_json(trial.folder / FAILED, {"run": name, "error": str(error)})
            progress.say(f"{title}: {error}")
            return
        if was_finished:
            progress.done(trial.costs[name])
        elif jax.process_index() == 0:
            spent = stage.seconds + time.monotonic() - begin
            write_json(stage.workdir / SECONDS, spent)
        if outcome.stopped_by is not None:  # perhaps at the last step
            raise Stopped(outcome.stopped_by)
    for name, path in trial.evaluations.items():
        if not path.exists():
            evaluate_run(*trial.measurement(name), path.with_suffix(".json"))
    progress.done(trial.cost - sum(trial.costs.values()))
