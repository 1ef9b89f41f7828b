"""`occinv train --extend`: let the run in a workdir become longer.

The schedules are recomputed for the new length. `train` then continues from the newest checkpoint.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax

from occinv.schema import Experiment, UserError
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.train.disk import read_json, write_json
from occinv.train.lengths import lengths_of
from occinv.train.lock import lock_workdir
from occinv.train.prepare import prepare


def extend(experiment: Experiment, workdir: Path) -> str | None:
    """Give the run in `workdir` the length of `experiment`, which is the same run but longer.

    Args:
      experiment: The config of the run with a longer `train.duration` or `train.stop_after`.
      workdir: The run, finished or not.

    Returns:
      A sentence: the lengths before and now, and what the learning rate of the next step was to be
      and is. None if the run has this length already.

    Raises:
      UserError: There is no run, it has another config, or it is longer. Nothing is written.
    """
    path = workdir / files.CONFIG
    if not path.exists():
        raise UserError(f"--extend: {workdir} holds no run. Leave out --extend to start one")
    before = files.read_config(workdir).experiment
    train = dataclasses.replace(
        experiment.train, duration=before.train.duration, stop_after=before.train.stop_after
    )
    files.check_same(workdir, dataclasses.replace(experiment, train=train))
    epoch = prepare(experiment).assembly.epoch
    old, new = lengths_of(before, epoch), lengths_of(experiment, epoch)
    if new.steps < old.steps or new.end < old.end:
        raise UserError(
            f"--extend: the run in {workdir} has {old.end} steps of {old.steps}, and the config "
            f"has {new.end} of {new.steps}. Give a longer train.duration or train.stop_after"
        )
    if new == old:
        return None
    with Checkpoints(workdir / files.CHECKPOINTS, read_only=True) as checkpoints:
        done = checkpoints.latest() or 0
    with lock_workdir(workdir, "Wait until it ends."):
        if jax.process_index() == 0:
            write_json(path, {**read_json(path), "experiment": files.as_json(experiment)})
            if new.end > old.end:
                (workdir / files.RESULT).unlink(missing_ok=True)
    rates = [
        float(lengths.schedule(of.optimizer, of.train.batch_size)(done))
        for lengths, of in ((old, before), (new, experiment))
    ]
    change = f"goes from {rates[0]:.3g} to {rates[1]:.3g}"
    if rates[0] == rates[1]:
        change = f"stays at {rates[0]:.3g}"
    return (
        f"extended from {old.end} to {new.end} steps; the learning rate of step {done + 1} {change}"
    )
