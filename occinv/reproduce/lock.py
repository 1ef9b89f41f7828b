"""Who works on what, where several processes share a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import jax

from occinv.parallel import from_first_process
from occinv.schema import UserError


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds the lock file at `path`; yields whether this run got it.

    The lock is the operating system's (`flock`), which a killed process loses at once: nothing
    stale is left. It works between machines on any file system that passes it on (NFS does). The
    processes of one distributed run hold it together.

    Args:
      wait: until it is free, rather than not to get it.

    Raises UserError where the file system has no locks.
    """
    descriptor = None
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take() -> int:
        assert descriptor is not None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise UserError(f"{path} cannot be locked: {error.strerror}") from error
        holder = f"{platform.node()} {os.getpid()}\n"  # for a person who looks
        os.pwrite(descriptor, holder.ljust(80).encode(), 0)
        return 1

    try:
        yield from_first_process(take) == 1
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which gives the lock back
