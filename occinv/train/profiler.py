"""A trace of some steps of a run, for TensorBoard and Perfetto (`train.profile`)."""

from __future__ import annotations

import contextlib
import logging
import time
import types
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax

from occinv.paths import files_in, in_bucket, remove_folder
from occinv.train.disk import write_bytes

log = logging.getLogger("occinv.train")


class Profiler:
    """Traces the steps of `train.profile` and writes one trace, in process 0 only.

    Its devices take the same steps as those of the other processes, so one trace is enough. As a
    context manager it also ends a trace that a signal or an error interrupts.

    Attributes:
      folder: The trace is written to `plugins/profile/<time>/` in this folder, where TensorBoard
        looks for it.
      window: The number of the first traced step, from 1, and the number of steps; None: no trace.
    """

    def __init__(self, folder: Path, window: tuple[int, int] | None) -> None:
        self.folder = folder
        self.window = window if jax.process_index() == 0 else None
        self._is_tracing = False
        self._traced = folder

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.stop()

    def step(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """Return the context of step `number`, and start the trace if that step is the first.

        A run that resumes after the first step is not traced.
        """
        if self.window is not None and number == self.window[0]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # calls of Python functions would slow the steps down
            # JAX writes the trace to the disk.
            self._traced = Path(mkdtemp()) if in_bucket(self.folder) else self.folder
            jax.profiler.start_trace(
                self._traced, create_perfetto_trace=True, profiler_options=options
            )
            self._is_tracing = True
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def end_step(self, number: int, metrics: Any) -> float:
        """Write the trace if step `number` is its last, and return the seconds of writing."""
        if not self._is_tracing or self.window is None or number < sum(self.window) - 1:
            return 0.0
        jax.block_until_ready(metrics)  # the step may still be running
        began = time.monotonic()
        self.stop()
        return time.monotonic() - began

    def stop(self) -> None:
        """Write the trace, if one has begun."""
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
            if self._traced != self.folder:
                for path in files_in(self._traced):
                    write_bytes(self.folder / path.relative_to(self._traced), path.read_bytes())
                remove_folder(self._traced)
            log.info("wrote a profile to %s", self.folder)
