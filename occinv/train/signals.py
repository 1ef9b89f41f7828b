"""A request to stop, from the scheduler (SIGTERM) or the user (Ctrl-C), at a place of our choice.

A run that is asked to stop saves, says so, and exits with a status that means "saved; run the
same command to continue": 143 after SIGTERM, 130 after SIGINT, which is what shells report for a
program that the signal itself ended.

Several processes have to stop at the same step, whichever of them the scheduler has asked. There
JAX's own preemption service takes SIGTERM and agrees on the step.
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
    """Holds the first SIGTERM or SIGINT until the training loop looks.

        with StopRequest() as stop:
            while step < steps and not stop.is_due(step):
                ...
        if stop.requested is not None: save, then sys.exit(EXIT_STATUS[stop.requested])

    A second SIGINT raises KeyboardInterrupt at once, for a user who does not want to wait. Further
    SIGTERMs change nothing. The handlers from before are back after the block.

    Python lets only the main thread handle signals. In another thread the block does nothing,
    `is_listening` is False and `requested` stays None: signals act as they did before. So it is in
    one of several processes, where `is_due` asks JAX, and SIGINT ends a process at once.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self.is_listening = False
        self._previous: dict[signal.Signals, Any] = {}
        self._interrupts = 0

    def __enter__(self) -> StopRequest:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and jax.process_count() == 1:
            self._previous = {number: signal.signal(number, self._note) for number in EXIT_STATUS}
            self.is_listening = True
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be set from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        self.is_listening = False

    def is_due(self, step: int) -> bool:
        """Whether to stop after `step`: the same on every process, which all call it every step."""
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
