"""`python -m occinv …` as a fork of a process that has already imported JAX and occinv.

The imports are most of the time of a short run. The process behaves like one of `subprocess.Popen`:
it has its own environment, working folder, output and exit status, and receives signals.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["occinv.train.loop", "occinv.reproduce.run_table"])


class Forked:
    """A running command. Its output goes to two files, so it never waits for a reader."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.args = ["occinv", *arguments]
        self._folder = Path(tempfile.mkdtemp(prefix="forked"))
        self._process = FORKS.Process(
            target=run_command,
            args=(list(arguments), dict(environment), os.getcwd(), self._folder),
            daemon=True,  # it ends with the tests, even if one of them failed and left it alone
        )
        self._process.start()
        self.pid = self._process.pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return what it wrote to stdout and to stderr."""
        self.wait(timeout)
        if self._folder.exists():
            self._texts = tuple((self._folder / name).read_text() for name in ("stdout", "stderr"))
            shutil.rmtree(self._folder)
        return self._texts

    def kill(self) -> None:
        self._process.kill()


def run_command(arguments: list[str], environment: dict[str, str], cwd: str, folder: Path) -> None:
    """Run `occinv` in the fork, with its output in two files of `folder`."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["occinv", *arguments]
    import jax

    from occinv.cli import main

    for name in environment:
        if name.startswith("JAX_"):  # JAX reads them only while it is imported
            before = getattr(jax.config, name.lower())
            parse = str if before is None else type(before)
            jax.config.update(name.lower(), parse(environment[name]))
    try:
        sys.exit(main(arguments))
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
