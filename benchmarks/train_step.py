"""Compare a train step of each objective with a step of the same MAE in PyTorch.

    make bench                                                  all benchmarks
    .venv/bin/python benchmarks/train_step.py ViT-S/16          one model only

First it checks that both have the same loss for the same parameters, images and masks. Then the
steps are timed in turn, so that a slow minute affects all of them. It prints ratios, not seconds,
because the speed of a shared machine changes from minute to minute. Against PyTorch, 2 means twice
as many images per second. The last column is the FLOP/s of the model's matrix products, as a share
of the FLOP/s of a product of large matrices in the same run and dtype. On an accelerator, only the
last column is printed, and the batches are larger.
"""

import statistics
import sys

import jax
import torch
from _steps import MATRIX, flops_of, make_batch, ours, prepare, products, theirs, time_in_turn

from occinv.commands.allocator import keep_freed_memory

ROUNDS = 5
MODELS = {  # variant of the configs, fields, images per step
    "ViT-tiny/4": ("tiny_imagenet", ("encoder.patch_size=4", "data.image_size=32"), 64),
    "ViT-S/16": ("imagenet", ("encoder.name=small",), 8),
    "ViT-B/16": ("imagenet", (), 4),
}
OBJECTIVES = {"MAE": "mae", "R-MAE": "rmae", "C-MAE": "cmae"}


def main(*models: str) -> None:
    """Print a table of these models, or of all models."""
    keep_freed_memory()  # as `occinv train` does
    torch.manual_seed(0)
    print(f"{jax.device_count()} {jax.default_backend()} device(s), medians of {ROUNDS} rounds")
    print(f"{'':12} {'':8} {'against PyTorch':>16} {'of products':>16}")
    is_cpu = jax.default_backend() == "cpu"
    for model in models or MODELS:
        variant, fields, images = MODELS[model]
        images *= 1 if is_cpu else 32
        runs = {k: prepare(v, variant, fields, images) for k, v in OBJECTIVES.items()}
        batch = make_batch(runs["MAE"])
        steps = {name: ours(run, batch) for name, run in runs.items()}
        if is_cpu:
            steps["PyTorch"] = theirs(runs["MAE"], batch)
        steps["products"] = products(runs["MAE"].objective.setting.dtype)
        rounds = time_in_turn(steps, ROUNDS)  # their seconds
        peak = 2 * MATRIX**3 / rounds["products"]
        flops = {name: images * flops_of(run) for name, run in runs.items()}
        if is_cpu:
            flops["PyTorch"] = flops["MAE"]
        for name, work in flops.items():
            ratio = f"{statistics.median(rounds['PyTorch'] / rounds[name]):.2f}" if is_cpu else ""
            share = statistics.median(work / rounds[name] / peak)
            print(f"{model:12} {name:8} {ratio:>16} {share:16.0%}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
