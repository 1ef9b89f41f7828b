"""The progress of a run: a bar with the remaining time on a terminal, lines in a log file."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Watch = Callable[[int, int, dict[str, float] | None], None]


class Progress:
    """A context manager that shows the progress of training stages.

    A terminal shows a bar for the current stage and, with `total`, one for all stages. Other
    outputs get one line for each logged set of metrics.

    Args:
      total: The cost of all stages, in any unit; 0 for a single stage.
      console: The output; None is standard output.
    """

    def __init__(self, total: float = 0.0, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars = Bars(
            TextColumn("{task.description}"),
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
        self._total: TaskID | None = None
        if total:
            self._total = self._bars.add_task("all stages", total=total, note="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, highlight=False)

    def done(self, cost: float) -> None:
        """Add `cost` to the completed part of all stages."""
        if self._total is not None:
            self._bars.advance(self._total, cost)

    def stage(self, name: str, cost: float = 0.0) -> Watch:
        """Return the function to call after every step of a stage.

        Args:
          name: The text beside the bar.
          cost: The cost of the whole stage.
        """
        bar: TaskID | None = None
        seen = 0.0
        note = ""

        def watch(step: int, steps: int, metrics: dict[str, float] | None) -> None:
            nonlocal bar, seen, note
            if metrics is not None:
                note = f"loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} images/s"
                if not self.console.is_terminal:
                    self.say(f"{name}: step {step} of {steps}, {note}")
            if bar is None:
                bar = self._bars.add_task(name, total=steps, note=note)
            self._bars.update(bar, completed=step, note=note)
            if step == steps:
                self._bars.remove_task(bar)
            self.done(cost * (step / steps - seen))
            seen = step / steps

        return watch
