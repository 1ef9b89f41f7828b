"""Speed of one train step of each objective, as a ratio to MAE's, measured in one run.

    make bench            the quickstart's sizes
    .venv/bin/python benchmarks/train_step.py imagenet

Ratios are printed, not seconds: machines differ, and so does this one from minute to minute.
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from occinv import configuration, schema
from occinv.data.batch import Batch
from occinv.encoder import vit
from occinv.objective.base import Setting, build
from occinv.parallel import compute_dtype
from occinv.train.flops import matmul_flops
from occinv.train.optimizer import learning_rate, make_optimizer
from occinv.train.step import init_state, make_step

ROWS = {
    "MAE": ("mae", ()),
    "R-MAE": ("rmae", ()),
    "R-MAE†": ("rmae", ("--config.objective.t2=independent",)),
    "R-MAE‡": ("rmae", ("--config.objective.t2=identity",)),
    "C-MAE": ("cmae", ()),
    "supervised": ("supervised", ()),
}
ROUNDS = 9


def prepare(config: str, overrides: tuple[str, ...], variant: str):
    """A compiled step with its arguments, and its arithmetic."""
    path = Path(configuration.CONFIGS) / f"{config}.py"
    experiment = schema.resolve(configuration.load(f"{path}:{variant}", overrides))
    size, count = experiment.data.image_size, experiment.train.batch_size
    dtype = compute_dtype("auto")
    setting = Setting(vit.build(experiment.encoder, size, dtype), 10, 100, dtype)
    objective = build(experiment.objective, setting)
    schedule = learning_rate(experiment.optimizer, count, 1, 100)
    optimizer = make_optimizer(experiment.optimizer, schedule)
    random = np.random.default_rng(0)
    batch = Batch(
        image=random.integers(0, 256, (count, size, size, 3), np.uint8),
        label=random.integers(0, 10, count, np.int32),
        index=np.arange(count, dtype=np.int32),
        weight=np.ones(count, np.float32),
    )
    state = jax.jit(lambda: init_state(objective, optimizer, 0))()
    step = make_step(objective, optimizer)
    return jax.jit(step), state, batch, matmul_flops(step, state, batch) / count


def main(variant: str = "quickstart") -> None:
    """Times the rows in turn, so that a slow minute falls on all of them."""
    prepared = {name: prepare(*row, variant) for name, row in ROWS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(ROUNDS + 1):  # the first round compiles
        for name, (step, state, batch, _) in prepared.items():
            began = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    print(f"{variant}, {jax.device_count()} {jax.default_backend()} device(s), median of {ROUNDS}")
    print(f"{'objective':12} {'time, MAE = 1':>14} {'FLOP, MAE = 1':>14}")
    for name, median in medians.items():
        flops = prepared[name][3] / prepared["MAE"][3]
        print(f"{name:12} {median / medians['MAE']:14.2f} {flops:14.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
