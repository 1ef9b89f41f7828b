"""A lock file, so that several workers can share a folder."""

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
    """Try to hold the lock file at `path`, and yield whether this worker holds it.

    The lock is an operating-system lock (`flock`), which ends with its process, so a killed worker
    leaves no stale lock. It works across machines on file systems that support it, such as NFS. All
    processes of a distributed run hold the lock together.

    Args:
      path: The lock file, which is created.
      wait: Wait until the lock is free.

    Raises:
      UserError: The file system does not support locks.
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
            raise UserError(
                f"cannot lock {path}: {error.strerror}. Use a file system with locks"
            ) from error
        holder = f"{platform.node()} {os.getpid()}\n"  # for people who look into the file
        os.pwrite(descriptor, holder.ljust(80).encode(), 0)
        return 1

    try:
        yield from_first_process(take) == 1
    finally:
        if descriptor is not None:
            os.close(descriptor)  # this releases the lock
