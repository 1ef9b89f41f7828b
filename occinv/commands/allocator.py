"""The memory allocator of the process, set so that a train step on CPU reuses its memory."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from importlib import metadata

# Parameters of mallopt(3) in glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Let glibc keep memory that is freed, instead of returning it to Linux at once.

    XLA's CPU runtime allocates the temporaries of a program anew in each step. Without this
    setting, Linux maps and clears their pages again each time: a tenth or more of a train step
    (docs/performance.md). Call it before JAX starts its threads. Nothing changes where JAX has a
    plugin for an accelerator, or without glibc.
    """
    if sys.platform != "linux" or metadata.entry_points(group="jax_plugins"):
        return
    if importlib.util.find_spec("libtpu") is not None:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # allocate large blocks on the heap, too,
        mallopt(M_TRIM_THRESHOLD, -1)  # which never shrinks
        mallopt(M_ARENA_MAX, 1)  # and is the only one: the others map large blocks
