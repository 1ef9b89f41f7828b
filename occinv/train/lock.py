"""Lock files: one process at a time trains in a workdir, and workers share a folder.

A lock is an operating-system lock (`flock`), which ends with its process, so a killed process
leaves no stale lock. It works across machines on file systems that support it: on NFS if the
mount does not restrict locks to one machine (`nolock`, `local_lock`). A bucket has no locks: see
`Claim`, and docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import platform
import shlex
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import jax

from occinv.parallel import from_first_process
from occinv.paths import in_bucket
from occinv.schema import UserError
from occinv.text import one_line
from occinv.train.agree import on_first_process
from occinv.train.disk import REMEDIES, RunFailed, naming

LOCK = "lock"
DELETED = (
    "{} was deleted or moved while it was in use, so the results of this run are lost. Run the "
    "same command to start again."
)


class Lock:
    """An open lock file. All processes of a distributed run hold it together, through process 0.

    Args:
      path: The lock file, which is created with its folder.

    Raises:
      OSError: The file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise OSError(errno.EINVAL, f"{path.name} is not a file")
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def take(self, *, wait: bool = False) -> bool:
        """Try to take the lock, or wait for it; return whether this process holds it now.

        Raises:
          UserError: The file system does not support locks.
        """
        assert self._descriptor is not None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            raise UserError(
                f"cannot lock {self.path}: {error.strerror}. Use a file system with locks."
            ) from error
        with naming(self.path):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{describe_this()}\n".encode(errors="replace"), 0)
        return True

    def holder(self) -> str:
        """Return what the holder of the lock wrote about itself, in one line."""
        assert self._descriptor is not None
        return name_of(os.pread(self._descriptor, 300, 0))

    def check(self) -> None:
        """Raise RunFailed if the folder of the lock was deleted or replaced."""
        if self._descriptor is None:
            return
        ours, folder = os.fstat(self._descriptor), self.path.parent
        try:
            is_there = os.path.samestat(ours, os.stat(self.path))
        except OSError:
            is_there = False
        if not is_there:
            raise RunFailed(DELETED.format(folder))

    def close(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class Claim(Lock):
    """The newest start of a training in a bucket, where files cannot be locked.

    The lock file names the start that wrote it last. An earlier one ends when it next calls
    `check`, so that a killed process leaves nothing that others must wait for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: bytes | None = None

    def take(self, *, wait: bool = False) -> bool:
        self._written = f"{describe_this()} ({uuid.uuid4().hex})\n".encode(errors="replace")
        try:
            self.path.write_bytes(self._written)
        except OSError as error:
            raise UserError(
                f"{self.path.parent} cannot be written: {one_line(str(error))}"
            ) from None
        return True

    def check(self) -> None:
        """Raise RunFailed if this start no longer has the claim that it took."""
        if self._written is None:
            return
        folder = self.path.parent
        try:
            found = self.path.read_bytes()
        except FileNotFoundError:
            raise RunFailed(DELETED.format(folder)) from None
        if found != self._written:
            raise RunFailed(
                f"{folder} was taken over by {name_of(found)}. This run ends; that one goes on "
                "from the newest checkpoint."
            )

    def close(self) -> None:
        """Do nothing."""


def describe_this() -> str:
    """Return this process, its machine, the time and the command as one line."""
    command = shlex.join(["occinv", *sys.argv[1:]])
    began = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return f"process {os.getpid()} on {platform.node()} since {began}: {command}"


def name_of(holder: bytes) -> str:
    """Return the content of a lock file as one line."""
    return one_line(holder.decode(errors="replace")) or "another process"


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to hold the lock file at `path`, and yield whether this worker holds it.

    A folder in a bucket has one worker, which holds every lock.

    Args:
      path: The lock file, which is created.
      wait: Wait until the lock is free.

    Raises:
      UserError: The file system does not support locks.
    """
    if in_bucket(path):
        yield True
        return
    with contextlib.closing(Lock(path)) as lock:
        yield from_first_process(lambda: int(lock.take(wait=wait))) == 1


@contextlib.contextmanager
def lock_workdir(workdir: Path, otherwise: str, *, trains: bool = False) -> Iterator[Lock]:
    """Hold the lock of a workdir. An error after the workdir was deleted says so.

    Args:
      workdir: The workdir, which is created.
      otherwise: What the user can do if another process holds the lock, as a sentence.
      trains: Whether this is a training. Only a training claims a workdir in a bucket, from the
        training that runs there.

    Raises:
      UserError: Another process holds the lock, on every process of this run, or the folder cannot
        be written.
      RunFailed: The workdir was deleted meanwhile, or claimed by another training.
    """
    opened: list[Lock] = []
    make = Claim if in_bucket(workdir) else Lock

    def take() -> None:
        try:
            opened.append(make(workdir / LOCK))
        except OSError as error:
            remedy = REMEDIES.get(errno.errorcode.get(error.errno or 0, ""), "Use another folder")
            raise UserError(f"{workdir} cannot be written: {error.strerror}. {remedy}.") from error
        if (make is Lock or trains) and not opened[0].take():
            raise UserError(f"{workdir} is in use by {opened[0].holder()}. {otherwise}")

    try:
        on_first_process(take)
        lock = opened[0] if opened else make(workdir / LOCK)
        try:
            with naming(workdir):
                yield lock
        except Exception:
            lock.check()
            raise
        lock.check()
    finally:
        for lock in opened:
            lock.close()
