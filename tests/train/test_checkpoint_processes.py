"""Checkpoints of other processes: killed, on a full disk, on other devices."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import jax
import numpy as np

from occinv.train.checkpoints import MANIFEST, Checkpoints

DEVICES = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=" + sys.argv[2]
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from occinv.train.checkpoints import Checkpoints

mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
full = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
with Checkpoints(sys.argv[1]) as checkpoints:
    if checkpoints.latest() is None:
        params = {"split": jax.device_put(full, split), "whole": jax.device_put(full, whole)}
        checkpoints.save(1, {"params": params})
    else:
        spec = jax.ShapeDtypeStruct
        wanted = {"split": spec((8, 3), np.float32, sharding=whole),
                  "whole": spec((8, 3), np.float32, sharding=split)}
        _, state = checkpoints.restore({"params": wanted})
        for name in wanted:
            assert state["params"][name].sharding == wanted[name].sharding, name
            assert np.array_equal(state["params"][name], full), name
    assert np.array_equal(checkpoints.restore_params()[1]["split"], full)
print(jax.device_count())
"""


def test_restored_on_another_number_of_devices_and_silently(tmp_path):
    for devices in ("4", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", DEVICES, str(tmp_path / "c"), devices],
            capture_output=True,
            text=True,
            timeout=120,
        )
        # Orbax's own log stays off the terminal.
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, devices + "\n", "")


LIMITED = """
import resource, sys
import numpy as np
from occinv.train.checkpoints import Checkpoints
from occinv.train.disk import disk_problem

resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14))
checkpoints = Checkpoints(sys.argv[1])
arrays = {str(i): np.random.default_rng(i).normal(size=4096) for i in range(16)}
checkpoints.save(1, {"params": arrays})
try:
    checkpoints.wait()
except Exception as error:
    print(disk_problem(error))
"""


def test_a_save_that_the_disk_refuses_is_one_line(tmp_path):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "c")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.stdout.startswith(f"cannot write: {tmp_path}/c/1.orbax-checkpoint-tmp/params")
    assert "File too large. Raise the limit" in ran.stdout
    assert ran.stdout.count("\n") == 1
    assert (ran.returncode, ran.stderr) == (0, "")


# Forks before JAX has started its threads: eight runs for one import. A run takes up where the
# one before was killed, and tells after each save that the step before is on disk.
KILLED = """
import os, sys, time, signal
import jax, numpy as np
from occinv.train.checkpoints import Checkpoints

def run(out):
    with Checkpoints(sys.argv[1], keep=2) as checkpoints:
        step = checkpoints.latest() or 0
        while True:
            step += 1
            arrays = {str(i): np.full((64, 256), step + i / 16, np.float32) for i in range(16)}
            checkpoints.save(step, {"params": arrays, "step": np.int32(step)})
            os.write(out, b"%d\\n" % step)

for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run(write)
    os.close(write)
    first = os.read(read, 4096)
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    told = first
    while more := os.read(read, 4096):
        told += more
    print(int(told.split()[-1]) - 1, flush=True)
"""


def test_killed_at_any_moment_the_newest_complete_step_is_there(tmp_path, caplog):
    rng = random.Random(1)
    folder = tmp_path / "checkpoints"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    leftovers = 0
    try:
        for _ in range(8):
            process.stdin.write(f"{rng.uniform(0.05, 1.5)}\n")
            process.stdin.flush()
            committed = int(process.stdout.readline())
            leftovers += any("tmp" in p.name for p in folder.iterdir())
            with Checkpoints(folder, read_only=True) as checkpoints:
                if checkpoints.latest() is None:
                    assert committed == 0
                    continue
                step, params = checkpoints.restore_params()
                assert step >= committed
                _, saved = checkpoints.restore({"step": np.int32(0)}, step)
                assert saved == {"step": step}
            expected = {str(i): np.full((64, 256), step + i / 16, np.float32) for i in range(16)}
            jax.tree.map(np.testing.assert_array_equal, params, expected)
    finally:
        _, errors = process.communicate(timeout=60)
    assert errors == ""
    assert step > 8
    # The manifest appears together with the step, so no kill leaves a step unchecked or damaged.
    assert not caplog.records
    assert leftovers, "no kill fell into a save: the test has lost its point"
    assert json.loads((folder / str(step) / MANIFEST).read_bytes())["files"]
