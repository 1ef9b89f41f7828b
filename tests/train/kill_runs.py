"""Kill runs at random moments with SIGKILL, and compare them with runs that were not killed.

    python tests/train/kill_runs.py                    # 10 kills of MAE and C-MAE each
    python tests/train/kill_runs.py 50 mae cmae 2:mae  # 50 kills each; MAE also on two processes
    python tests/train/kill_runs.py 3 mae,optimizer.name=muon

Every run must end with the same bits in parameters, optimizer and state, the same lines in
metrics.jsonl and in TensorBoard, each step once, and `train.keep` checkpoints. pytest does not
collect this file; test_loop.py kills one run twice.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"

from forked import Forked  # noqa: E402
from tiny_runs import (  # noqa: E402
    assert_same_end,
    losses,
    make_images,
    start,
    start_several,
    tensorboard,
    tiny,
)

from occinv.train import workdir as files  # noqa: E402
from occinv.train.writers import read_scalars  # noqa: E402

STEPS, KEEP = 40, 2
FIELDS = (
    f"train.duration.steps={STEPS}", f"train.keep={KEEP}", "train.checkpoint_every.steps=2",
    "train.log_every.steps=3",
)  # fmt: skip


def begin(spec: str, images: Path, workdir: Path, cache: Path) -> list[Forked]:
    """Start a run: `OBJECTIVE[,FIELD=VALUE...]`, or `N:OBJECTIVE...` on N processes."""
    count, _, name = spec.rpartition(":")
    name, *fields = name.split(",")
    command = ["train", *tiny(name, images, *FIELDS, *fields), "--workdir", str(workdir)]
    # Killed runs write no compiled programs, because a kill could cut one short.
    least = "1e9" if workdir.name == "killed" else "0"
    variables = {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": least,
    }
    if count:
        return start_several(int(count), command, **variables)
    return [start(command, **variables)]


def end(processes: list[Forked]) -> None:
    """Wait for a run, which must succeed."""
    for process in processes:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors


def kill(processes: list[Forked], workdir: Path, draw: random.Random) -> bool:
    """Kill a run at a random moment; return whether a save was under way."""
    deadline = time.monotonic() + 300
    first = newest(workdir)
    wanted = first + draw.randrange(0, 12)  # steps; 0: while it starts
    while wanted > first and newest(workdir) < wanted:
        if any(process.poll() is not None for process in processes):
            break
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.3 if wanted > first else 8))
    draw.shuffle(processes)
    for process in processes:  # as a scheduler that ends a job, one after the other
        process.kill()
    for process in processes:
        process.communicate()
    return any("tmp" in path.name for path in (workdir / files.CHECKPOINTS).glob("*"))


def newest(workdir: Path) -> int:
    """Return the newest checkpoint on disk, 0 if there is none."""
    names = (path.name for path in (workdir / files.CHECKPOINTS).glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def compare(killed: Path, whole: Path) -> None:
    """Raise AssertionError if the two runs differ in anything that a restart must not change."""
    assert_same_end(killed, whole)
    steps = [[line["step"] for line in read_scalars(w / files.METRICS)] for w in (killed, whole)]
    assert steps[0] == steps[1], steps
    assert tensorboard(killed).keys() == tensorboard(whole).keys() == losses(whole).keys()
    assert tensorboard(killed) == tensorboard(whole)
    assert len(list((killed / files.CHECKPOINTS).iterdir())) == KEEP


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    draw = random.Random(0)
    for spec in sys.argv[2:] or ["mae", "cmae"]:
        with tempfile.TemporaryDirectory() as folder:
            images = make_images(Path(folder) / "images")
            cache, whole = Path(folder) / "cache", Path(folder) / "whole"
            end(begin(spec, images, whole, cache))
            kills = saving = runs = 0
            while kills < count:
                killed = Path(folder) / str(runs) / "killed"
                while kills < count and not (killed / files.RESULT).exists():
                    saving += kill(begin(spec, images, killed, cache), killed, draw)
                    kills += 1
                    print(f"{spec}: kill {kills} after step {newest(killed)}", flush=True)
                end(begin(spec, images, killed, cache))
                compare(killed, whole)
                runs += 1
            print(
                f"{spec}: {kills} kills in {runs} runs of {STEPS} steps, {saving} of them during a "
                f"save; {runs} of {runs} runs ended with the same bits, metrics and events",
                flush=True,
            )


if __name__ == "__main__":
    main()
