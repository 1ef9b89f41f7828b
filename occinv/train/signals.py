"""Stop requests from the scheduler (SIGTERM) or the user (Ctrl-C).

A run that receives a request finishes its step, saves a checkpoint and exits with the status that
shells report for a program killed by the signal: 143 after SIGTERM, 130 after SIGINT. The same
command continues the run.

Several processes must stop at the same step, whichever of them the scheduler signals. There JAX's
preemption service receives SIGTERM and agrees on the step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


class StopRequest:
    """Holds the first SIGTERM or SIGINT until the training loop asks for it.

        with StopRequest() as stop:
            while step < steps and not stop.is_due(step):
                ...
        if stop.requested is not None: save, then sys.exit(EXIT_STATUS[stop.requested])

    A second SIGINT raises KeyboardInterrupt at once, for a user who does not want to wait. More
    SIGTERMs have no effect. The previous handlers are restored after the block.

    Python allows only the main thread to handle signals. In another thread the block installs no
    handlers and `requested` stays None. With several processes it installs none either: `is_due`
    asks JAX, and SIGINT ends a process at once.

    Attributes:
      requested: The first signal received, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._interrupts = 0

    def __enter__(self) -> StopRequest:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._note) for number in EXIT_STATUS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            # Python reports a handler that was not installed from Python as None.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def is_due(self, step: int) -> bool:
        """Return whether to stop after `step`.

        The answer is the same on every process. Every process must call this after every step.
        """
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.requested = signal.SIGTERM
        return self.requested is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self.requested is None:
            self.requested = signal.Signals(number)
