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

import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from _torch_mae import Mae

from occinv import parallel, schema
from occinv.config import CONFIGS, load_config
from occinv.data.batch import Batch
from occinv.models.vit import SIZES
from occinv.objectives import forward
from occinv.rng import image_rngs
from occinv.train.flops import model_flops
from occinv.train.step import Assembly, TrainState, assemble, init_state, trace_step

ROUNDS = 5
MODELS = {  # variant of the configs, fields, images per step
    "ViT-tiny/4": ("tiny_imagenet", ("encoder.patch_size=4", "data.image_size=32"), 64),
    "ViT-S/16": ("imagenet", ("encoder.name=small",), 8),
    "ViT-B/16": ("imagenet", (), 4),
}
OBJECTIVES = {"MAE": "mae", "R-MAE": "rmae", "C-MAE": "cmae"}
MATRIX = 4096  # rows and columns of the matrices in the product of large matrices


def prepare(config: str, variant: str, fields: tuple[str, ...], images: int) -> Assembly:
    """Return the assembly that `occinv train` makes from a config."""
    path = Path(CONFIGS) / f"{config}.py"
    given = [f"--config.{field}" for field in (*fields, f"train.batch_size={images}")]
    experiment = schema.resolve(load_config(f"{path}:{variant}", given))
    return assemble(experiment, parallel.make_mesh(jax.devices()[:1]), 1000, 1281167)


def make_batch(run: Assembly) -> Batch:
    """Draw random images."""
    count, size = run.experiment.train.batch_size, run.experiment.data.image_size
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)
    number = np.arange(count, dtype=np.int32)
    return Batch(images, number, number, np.ones(count, np.float32))


def ours(run: Assembly, batch: Batch) -> Callable[[], Any]:
    """Return a function that takes one more step."""
    state = jax.jit(lambda: init_state(run.objective, run.optimizer, 0))()
    program = trace_step(run, state).lower().compile()
    placed = parallel.put_batch(run.mesh, batch)

    def step() -> None:
        nonlocal state
        state, metrics = program(state, placed)
        jax.block_until_ready((state, metrics))

    return step


def theirs(run: Assembly, batch: Batch) -> Callable[[], Any]:
    """Return the same in PyTorch. Raise AssertionError unless both losses are equal."""
    objective, state = run.objective, init_state(run.objective, run.optimizer, 0)
    visible, loss = our_loss(run, state, batch)
    name = run.experiment.encoder.name
    encoder, decoder = objective.networks.encoder, objective.networks.decoder
    model = Mae(
        encoder.patch_size,
        encoder.num_patches,
        SIZES[name],
        (decoder.width, decoder.depth, decoder.heads),
    )
    model.load(jax.device_get(state.params))
    image = torch.from_numpy(batch.image)
    order = torch.from_numpy(np.argsort(~visible, axis=1, kind="stable"))
    kept = int(visible[0].sum())
    np.testing.assert_allclose(model(image, order, kept).item(), loss, rtol=1e-4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        order = torch.rand(len(image), visible.shape[1]).argsort(1)
        optimizer.zero_grad()
        model(image, order, kept).backward()
        optimizer.step()

    return step


def our_loss(run: Assembly, state: TrainState, batch: Batch) -> tuple[np.ndarray, float]:
    """Return the visible patches [B, N] of one step, and its loss."""
    rng = image_rngs(jax.random.key(1), 0, len(batch.image))
    arguments = state.params, state.objective_state, batch, rng, jnp.int32(0)
    views, _ = forward.represent(run.objective, *arguments)
    loss, _ = jax.jit(functools.partial(forward.mean_loss, run.objective))(*arguments)
    return np.asarray(views[0].visible), float(loss)


def products(dtype: Any) -> Callable[[], Any]:
    """Return a function that multiplies large matrices."""
    matrix = jnp.ones((MATRIX, MATRIX), dtype)
    multiply = jax.jit(lambda: matrix @ matrix)
    return lambda: jax.block_until_ready(multiply())


def main(*models: str) -> None:
    """Print a table of these models, or of all models."""
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
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS + 1):  # the first round warms up
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - began)
        rounds = {name: np.array(times[1:]) for name, times in seconds.items()}
        peak = 2 * MATRIX**3 / rounds["products"]
        flops = {name: images * flops_of(run) for name, run in runs.items()}
        if is_cpu:
            flops["PyTorch"] = flops["MAE"]
        for name, work in flops.items():
            ratio = f"{statistics.median(rounds['PyTorch'] / rounds[name]):.2f}" if is_cpu else ""
            share = statistics.median(work / rounds[name] / peak)
            print(f"{model:12} {name:8} {ratio:>16} {share:16.0%}", flush=True)


def flops_of(run: Assembly) -> float:
    """Return the FLOPs of an image in matrix products."""
    return model_flops(run, jax.eval_shape(lambda: init_state(run.objective, run.optimizer, 0)))


if __name__ == "__main__":
    main(*sys.argv[1:])
