"""Measure the time before the first step: imports, and compiling by the depth of the encoder.

    .venv/bin/python benchmarks/start_up.py

It prints ratios: processes are compared with one that only imports jax, and compile times with that
of a loop of 12 transformer blocks.
"""

import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from occinv import parallel, schema
from occinv.config import CONFIGS, load_config
from occinv.models.blocks import Layout
from occinv.train.step import assemble, init_state, trace_step

ROUNDS = 3
SMOKE = f"{CONFIGS}/mae.py:smoke"
PROCESSES = {
    "import jax": "import jax; jax.devices()",
    "occinv --help": "from occinv.cli import main; main(['--help'])",
    "a smoke run of 1 step": (
        "import sys; from occinv.cli import main; sys.exit(main(['train', '--config', "
        f"{SMOKE!r}, '--workdir', sys.argv[1], '--config.train.duration.steps=1', "
        "'--config.optimizer.warmup.steps=1']))"
    ),
}


def process(code: str) -> float:
    """Return the seconds of a Python process."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code, folder + "/run"],
            check=True,
            capture_output=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        return time.perf_counter() - began


def compiling(depth: int, unroll: int) -> float:
    """Return the CPU seconds to trace and compile MAE's step with `depth` encoder blocks."""
    path = Path(CONFIGS) / "mae.py"
    given = [f"--config.encoder.{field}" for field in ("name=tiny", f"depth={depth}")]
    experiment = schema.resolve(load_config(str(path), [*given, "--config.train.batch_size=8"]))
    run = assemble(experiment, parallel.make_mesh(jax.devices()[:1]), 1000, 1281167)
    setting = run.objective.setting
    encoder = setting.encoder.clone(layout=Layout(unroll=unroll))
    setting = dataclasses.replace(setting, encoder=encoder)
    run = dataclasses.replace(run, objective=dataclasses.replace(run.objective, setting=setting))
    state = jax.eval_shape(lambda: init_state(run.objective, run.optimizer, 0))
    began = time.process_time()
    trace_step(run, state).lower().compile()
    return time.process_time() - began


def main() -> None:
    """Print both tables."""
    times: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(ROUNDS + 1):
        for name, code in PROCESSES.items():
            times[name].append(process(code))
    base = statistics.median(times["import jax"][1:])
    for name, seconds in times.items():
        print(f"{name:24} {statistics.median(seconds[1:]) / base:6.2f}")
    base = compiling(12, 0)
    print(f"{'compiling: blocks':24} {'loop':>6} {'unrolled':>9}")
    for depth in (12, 24, 48):
        loop = compiling(depth, 0) / base
        print(f"{depth:24} {loop:6.1f} {compiling(depth, depth) / base:9.1f}", flush=True)


if __name__ == "__main__":
    main()
