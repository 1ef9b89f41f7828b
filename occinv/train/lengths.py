"""The lengths of a run and of its schedules, in steps."""

from __future__ import annotations

from typing import NamedTuple

import optax

from occinv.schema import Experiment, Optimizer, UserError
from occinv.sections import INT32
from occinv.train.optimizer import learning_rate


class Lengths(NamedTuple):
    """The lengths of a run in steps.

    Attributes:
      steps: The length of the schedules.
      end: The length of the run, which `train.stop_after` may make shorter.
      warmup, cooldown: The lengths of the learning rate's warm-up, and of the cooldown of `wsd`.
    """

    steps: int
    end: int
    warmup: int
    cooldown: int

    def schedule(self, config: Optimizer, batch_size: int) -> optax.Schedule:
        """Return the learning rate by step."""
        return learning_rate(config, batch_size, self.warmup, self.steps, self.cooldown)


def lengths_of(experiment: Experiment, epoch: int) -> Lengths:
    """Return the lengths of a run on `epoch` images.

    Raises:
      UserError: The lengths contradict each other.
    """
    train = experiment.train
    steps = train.duration.in_steps(train.batch_size, epoch)
    warmup, cooldown = (
        length.in_steps(train.batch_size, epoch, steps)
        for length in (experiment.optimizer.warmup, experiment.optimizer.cooldown)
    )
    if steps < 1:
        raise UserError(
            f"train.duration={train.duration} is less than one step of {train.batch_size} images "
            f"over {epoch} images of data; use a longer duration or a smaller batch"
        )
    if steps >= INT32:  # the counter of the optimizer
        raise UserError(
            f"train.duration={train.duration} is {steps:.3g} steps, expected fewer than {INT32}"
        )
    end = steps
    if train.stop_after is not None:
        end = train.stop_after.in_steps(train.batch_size, epoch)
        if not 1 <= end <= steps:
            raise UserError(
                f"train.stop_after={train.stop_after} is {end} steps, expected 1 to {steps}, which "
                f"is train.duration={train.duration}"
            )
    if train.profile is not None and train.profile[0] > end:
        raise UserError(
            f"train.profile={train.profile}: step {train.profile[0]} is after the end of the run; "
            f"use a first step of 1 to {end}"
        )
    if warmup > steps:
        raise UserError(
            f"optimizer.warmup={experiment.optimizer.warmup} is longer than "
            f"train.duration={train.duration} ({warmup} and {steps} steps); shorten it, such as by "
            "--config.optimizer.warmup.share=0.1"
        )
    if experiment.optimizer.schedule == "wsd" and warmup + cooldown > steps:
        raise UserError(
            f"optimizer.warmup={experiment.optimizer.warmup} and optimizer.cooldown="
            f"{experiment.optimizer.cooldown} are longer than train.duration={train.duration} "
            f"({warmup} + {cooldown} and {steps} steps); shorten one of them"
        )
    return Lengths(steps, end, warmup, cooldown)
