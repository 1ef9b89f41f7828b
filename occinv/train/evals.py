"""Evaluators during training: the section `evals` of a config.

Each entry has the options of an evaluator, its interval `every`, and the `name` of the evaluator if
it is not that of the entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from occinv import parallel
from occinv.evaluators.base import Evaluator, Subject, run_evaluator
from occinv.train.check import read_evals
from occinv.train.prepare import Run
from occinv.train.records import check_record_file, record_file, write_record
from occinv.train.step import TrainState, join_state
from occinv.train.writers import Writer


class Entry(NamedTuple):
    """An evaluator of a run: its label, the name of its class, itself, its interval in steps."""

    label: str
    name: str
    evaluator: Evaluator
    every: int


class Evals:
    """The evaluators of a run, checked before the first step.

    Raises:
      UserError: An unknown evaluator or option, an evaluator that cannot measure the objective,
        images that cannot be opened, or a file of other content in the place of the records.
    """

    def __init__(self, run: Run, workdir: Path) -> None:
        self.run, self.workdir = run, workdir
        experiment = run.assembly.experiment
        self.entries: list[Entry] = []
        for label, name, evaluator, interval in read_evals(experiment):
            subject = self._subject({})
            evaluator.check(subject)
            subject.open(evaluator.source, evaluator.num_images)
            check_record_file(record_file(workdir, label))
            self.entries.append(Entry(label, name, evaluator, run.every(interval)))

    def _subject(self, params: dict) -> Subject:
        run, assembly = self.run, self.run.assembly
        data, source = assembly.experiment.data, run.loader.source
        return Subject(assembly.objective, params, data, source, run.classes, assembly.mesh)

    def write(self, state: TrainState, step: int, writer: Writer) -> bool:
        """Run the evaluators that are due after `step` steps, and write their results.

        Numbers go to the writer as `LABEL/VALUE`, pictures to TensorBoard. At the end, records are
        written into the workdir as by `occinv evaluate`. Returns whether any evaluator was due.
        """
        is_end = step == self.run.assembly.steps
        due = [entry for entry in self.entries if is_end or step % entry.every == 0]
        if not due:
            return False
        mesh, experiment = self.run.assembly.mesh, self.run.assembly.experiment
        whole = jax.jit(lambda params: params, out_shardings=parallel.replicated(mesh))
        subject = self._subject(whole(join_state(self.run.assembly, state).params))
        for label, name, evaluator, _ in due:
            objective = str(experiment.objective["name"])
            record, result = run_evaluator(
                name, evaluator, subject, str(self.workdir), objective, step
            )
            writer.write_scalars(step, {f"{label}/{key}": v for key, v in result.values.items()})
            names = list(dict.fromkeys(key for row in result.pictures for key in row))
            writer.write_images(
                step,
                {
                    f"{label}/{key}": np.stack([row[key] for row in result.pictures])
                    for key in names
                    if len({row[key].shape for row in result.pictures}) == 1
                },
            )
            if is_end:
                write_record(record_file(self.workdir, label), record, result)
        return True
