"""The progress of a run: a bar with the remaining time on a terminal, lines in a log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Watch = Callable[[int, int, dict[str, float] | None], None]
STARTING = "opening data and compiling"


def discard_output() -> None:
    """Discard all later output, because the reader of standard output is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LastingConsole(Console):
    """A console that outlives the reader of its output, such as `head`: the run goes on."""

    def on_broken_pipe(self) -> None:
        """Discard all later output. The base class exits."""
        discard_output()


class Progress:
    """A context manager that shows the progress of training stages.

    A terminal shows a bar for the current stage and, with `total`, one for all stages. Other
    outputs get one line for each logged set of metrics. Before the first step of a stage, the bar
    says that it opens the data and compiles.

    Args:
      total: The cost of all stages, in any unit; 0 for a single stage.
      console: The output; None is standard output.
    """

    def __init__(self, total: float = 0.0, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=120,  # seconds, because stages differ in speed
        )
        self._stage: TaskID | None = None
        self._total: TaskID | None = None
        if total:
            self._total = self._bars.add_task("all stages", total=total, note="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end_stage()
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line above the bars. It stays one line in a file or a pipe."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def done(self, cost: float) -> None:
        """Add `cost` to the completed part of all stages."""
        if self._total is not None:
            self._bars.advance(self._total, cost)

    def stage(self, name: str, cost: float = 0.0) -> Watch:
        """Begin a stage, and return the function to call after each of its steps.

        Args:
          name: The text beside the bar.
          cost: The cost of the whole stage.
        """
        self._end_stage()
        bar = self._stage = self._bars.add_task(name, total=None, note=STARTING)
        seen = 0.0
        note = ""

        def watch(step: int, steps: int, metrics: dict[str, float] | None) -> None:
            nonlocal seen, note
            count = f"step {step}/{steps}"
            if metrics is not None:
                note = f", loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} images/s"
            if self._stage == bar:
                self._bars.update(bar, completed=step, total=steps, note=count + note)
                if metrics is not None and not self.console.is_terminal:
                    self.say(f"{name}: {count}{note}{self._left(bar)}")
            if step == steps:
                self._end_stage()
            self.done(cost * (step / steps - seen))
            seen = step / steps

        return watch

    def _left(self, bar: TaskID) -> str:
        """Return the remaining time as a text, empty before it can be estimated."""
        seconds = next(task for task in self._bars.tasks if task.id == bar).time_remaining
        return "" if not seconds else f", {timedelta(seconds=round(seconds))} left"

    def _end_stage(self) -> None:
        if self._stage is not None:
            self._bars.remove_task(self._stage)
            self._stage = None
