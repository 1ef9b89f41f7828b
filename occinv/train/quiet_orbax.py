"""Keep the messages of Orbax and TensorStore off the terminal.

Every failure also reaches the caller as an exception, so nothing is lost.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any


def quiet_orbax() -> None:
    """Drop Orbax's log, and what is printed while a failed save ends. Other messages pass."""
    # Orbax logs its progress and tracebacks through absl's logger.
    folder = f"{os.sep}orbax{os.sep}"
    logging.getLogger("absl").addFilter(lambda record: folder not in record.pathname)
    # asyncio logs the other errors of a failed save, of which one was raised.
    logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    # Threads of TensorStore that still write then find no event loop.
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        is_late = isinstance(unraisable.exc_value, RuntimeError) and unraisable.object is None
        if not (is_late and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook
