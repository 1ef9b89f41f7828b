"""Measures the speed of training for the log."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Training speed since creation, without compilation, evaluation and writing a profile."""

    def __init__(self) -> None:
        self.steps = 0
        self._start = time.monotonic()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in this block as waiting for data."""
        asked = time.monotonic()
        yield
        self._waited += time.monotonic() - asked

    def exclude(self, seconds: float) -> None:
        """Do not count these seconds."""
        self._start += seconds

    def rates(self, batch_size: int) -> dict[str, float]:
        """Return images a second, and the fraction of time spent waiting for data."""
        seconds = time.monotonic() - self._start
        return {
            "images_per_second": self.steps * batch_size / seconds,
            "data_wait_fraction": self._waited / seconds,
        }
