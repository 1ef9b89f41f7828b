"""What a person sees while a run goes on: a bar with the time left, or lines in a log file."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Watch = Callable[[int, int, dict[str, float] | None], None]


class Progress:
    """A context in which stages show how far they are.

    On a terminal there is a bar for the stage and, with `total`, one for the whole; elsewhere each
    logged set of metrics becomes a line.

    Args:
      total: the cost of all stages together, in any unit; 0 for a single stage.
    """

    def __init__(self, total: float = 0.0, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            # Stages differ in speed: judge by the last minutes, not the last seconds.
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=120,
        )
        self._whole: TaskID | None = None
        if total:
            self._whole = self._bars.add_task("everything", total=total, note="")

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def say(self, line: str) -> None:
        """Prints a line above the bars."""
        self.console.print(line, highlight=False)

    def done(self, cost: float) -> None:
        """Counts `cost` of the whole as done at once."""
        if self._whole is not None:
            self._bars.advance(self._whole, cost)

    def stage(self, name: str, cost: float = 0.0) -> Watch:
        """A function to call after every step of the stage `name`, which has `cost` in all."""
        bar: TaskID | None = None
        seen = 0.0
        note = ""

        def watch(step: int, steps: int, metrics: dict[str, float] | None) -> None:
            nonlocal bar, seen, note
            if metrics is not None:
                note = f"loss {metrics['loss']:.3f}, {metrics['images_per_second']:.0f} images/s"
                if not self.console.is_terminal:
                    self.console.print(f"{name}: step {step} of {steps}, {note}", highlight=False)
            if bar is None:
                bar = self._bars.add_task(name, total=steps, note=note)
            self._bars.update(bar, completed=step, note=note)
            if step == steps:
                self._bars.remove_task(bar)
            self.done(cost * (step / steps - seen))
            seen = step / steps

        return watch
