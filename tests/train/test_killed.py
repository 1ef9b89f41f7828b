"""A process that is killed and started again ends like one that was not."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from tiny_runs import assert_same_end, losses, overrides, start, steps_of, tensorboard, tiny

from occinv.train import workdir as files


def test_killed_processes_end_as_one_that_was_not(images: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of C-MAE, which saves at every step, so often while it saves."""
    flat = images / "train" / "dark"  # no validation part: nothing to evaluate, less to compile
    fields = ("train.duration.steps=16", "train.checkpoint_every.steps=1")
    command = ["train", *tiny("cmae", flat), *overrides(*fields), "--workdir"]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    reference = start(
        [*command, str(tmp_path / "whole")],
        **cache,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    _, said = reference.communicate()
    assert reference.returncode == 0, said
    draw = random.Random(0)
    killed = tmp_path / "killed"
    for step in (2, 9):
        # They read what the first has compiled and write nothing that a kill could cut short.
        process = start(
            [*command, str(killed)], **cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1e9"
        )
        deadline = time.monotonic() + 120
        while f'"step": {step},' not in _text(killed / files.METRICS):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    last = start([*command, str(killed)], **cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1e9")
    _, said = last.communicate()
    assert last.returncode == 0, said
    assert "continuing after step" in said
    assert_same_end(killed, tmp_path / "whole")
    assert steps_of(killed) == steps_of(tmp_path / "whole")
    assert tensorboard(killed) == tensorboard(tmp_path / "whole") == losses(tmp_path / "whole")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
