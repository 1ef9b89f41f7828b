"""One process at a time uses a workdir."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from occinv.schema import UserError
from occinv.train.disk import RunFailed
from occinv.train.lock import LOCK, lock_workdir, locked

OTHERWISE = "Wait."


def test_a_second_process_is_told_who_uses_the_workdir(tmp_path: Path) -> None:
    workdir = tmp_path / "new" / "run"
    with lock_workdir(workdir, OTHERWISE):
        with pytest.raises(UserError) as caught, lock_workdir(workdir, OTHERWISE):
            pytest.fail("two processes hold the lock")
        said = str(caught.value)
        assert (
            f"{workdir} is in use by process {os.getpid()} on {os.uname().nodename} since" in said
        )
        assert ": occinv" in said and said.endswith(OTHERWISE)
        with locked(workdir / LOCK) as is_ours:
            assert not is_ours
    with lock_workdir(workdir, OTHERWISE):
        pass


HOLDER = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.write(file, b"process 1 \\x1b[31m\\n")
print("held", flush=True)
time.sleep(60)
"""


def test_a_dead_holder_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-S", "-c", HOLDER, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match="in use by process 1  "),
            lock_workdir(tmp_path, "Wait"),
        ):
            pass
        holder.kill()
    with lock_workdir(tmp_path, OTHERWISE):
        pass


def test_a_pipe_is_no_lock(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with (
        pytest.raises(UserError, match="cannot be written: lock is not a file"),
        lock_workdir(tmp_path, OTHERWISE),
    ):
        pass


@pytest.mark.parametrize("replaced", [True, False])
def test_a_workdir_that_is_deleted_ends_the_run(tmp_path: Path, replaced: bool) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(RunFailed, match="was deleted or moved"), lock_workdir(workdir, OTHERWISE):
        shutil.rmtree(workdir)
        if replaced:
            workdir.mkdir()
            (workdir / LOCK).touch()
    with pytest.raises(RunFailed, match="was deleted") as caught, lock_workdir(workdir, OTHERWISE):
        shutil.rmtree(workdir)
        raise FileNotFoundError("something in the workdir")
    assert "\n" not in str(caught.value)


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="x"), lock_workdir(tmp_path, OTHERWISE):
        raise KeyError("x")


def test_a_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    workdir = tmp_path / "file" / "run"
    with pytest.raises(UserError, match="cannot be written"), lock_workdir(workdir, OTHERWISE):
        pass
