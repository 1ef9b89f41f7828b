"""Stop requests from the scheduler (SIGTERM), the user (Ctrl-C) or a closed terminal (SIGHUP).

A run that receives a request finishes its step, saves a checkpoint and exits with the status that
shells report for a program killed by the signal: 143 after SIGTERM, 130 after SIGINT, 129 after
SIGHUP. The same command continues the run.

Several processes must stop at the same step, whichever of them the scheduler signals. There JAX's
preemption service receives SIGTERM and agrees on the step; SIGHUP is passed on to it as SIGTERM.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


class StopRequest:
    """Holds the first SIGTERM, SIGINT or SIGHUP until the training loop asks for it.

        with StopRequest() as stop:
            while step < steps and not stop.is_due(step):
                ...
        if stop.requested is not None: save, then sys.exit(EXIT_STATUS[stop.requested])

    A second SIGINT raises KeyboardInterrupt at once, for a user who does not want to wait. More
    SIGTERMs have no effect. A signal that is ignored stays ignored, as under `nohup`. The previous
    handlers are restored after the block.

    Python allows only the main thread to handle signals. In another thread the block installs no
    handlers and `requested` stays None. With several processes it installs one for SIGHUP only:
    `is_due` asks JAX, and SIGINT ends a process at once.

    Attributes:
      requested: The first signal received, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._interrupts = 0

    def __enter__(self) -> StopRequest:
        is_main = threading.current_thread() is threading.main_thread()
        is_single = jax.process_count() == 1
        for number in EXIT_STATUS if is_single else (signal.SIGHUP,):
            if is_main and signal.getsignal(number) is not signal.SIG_IGN:
                handler = self._note if is_single else _pass_on
                self._previous[number] = signal.signal(number, handler)
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
        if number == signal.SIGHUP:
            _leave_terminal()
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self.requested is None:
            self.requested = signal.Signals(number)


def _pass_on(number: int, frame: FrameType | None) -> None:
    _leave_terminal()
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_terminal() -> None:
    """Write to nowhere instead of a terminal, because writing to a closed one is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
