"""Train steps that the benchmarks time: ours, PyTorch's MAE, and products of large matrices."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occinv import parallel, schema
from occinv.config import CONFIGS, load_config
from occinv.data.batch import Batch
from occinv.models.vit import SIZES
from occinv.objectives import forward
from occinv.rng import image_rngs
from occinv.train.flops import model_flops
from occinv.train.step import (
    Assembly,
    TrainState,
    assemble,
    batch_shapes,
    init_state,
    split_state,
    trace_step,
)

Options = dict[str, Any] | None
MATRIX = 4096  # rows and columns of the matrices in the product of large matrices


def prepare(
    config: str,
    variant: str,
    fields: tuple[str, ...],
    images: int,
    device: jax.Device | None = None,
) -> Assembly:
    """Return the assembly that `occinv train` makes from a config, on one device."""
    path = Path(CONFIGS) / f"{config}.py"
    given = [f"--config.{field}" for field in (*fields, f"train.batch_size={images}")]
    experiment = schema.resolve(load_config(f"{path}:{variant}", given))
    mesh = parallel.make_mesh([device or jax.devices()[0]])
    return assemble(experiment, mesh, 1000, 1281167)


def make_batch(run: Assembly, seed: int = 0) -> Batch:
    """Draw random images, and random crops if the objective has any."""
    draw, shapes = np.random.default_rng(seed), batch_shapes(run)
    image, *crops = (
        draw.integers(0, 256, x.shape, np.uint8) for x in (shapes.image, *shapes.crops)
    )
    number = np.arange(len(image), dtype=np.int32)
    return Batch(image, number, number, np.ones(len(image), np.float32), tuple(crops))


def start(run: Assembly, options: Options = None) -> TrainState:
    """Return the state before the first step, on the default device."""
    return jax.jit(lambda: init_state(run.objective, run.optimizer, 0), compiler_options=options)()


def ours(run: Assembly, batch: Batch, options: Options = None) -> Callable[[], Any]:
    """Return a function that takes one more step, compiled with these options of XLA."""
    state = split_state(run, start(run, options))
    program = trace_step(run, state).lower().compile(compiler_options=options)
    placed = parallel.put_batch(run.mesh, batch)

    def step() -> None:
        nonlocal state
        state, metrics = program(state, placed)
        jax.block_until_ready((state, metrics))

    return step


def theirs(run: Assembly, batch: Batch, device: str = "cpu") -> Callable[[], Any]:
    """Return the same in PyTorch. Raise AssertionError unless both losses are equal.

    On an accelerator it is PyTorch's usual fast form: `torch.compile`, bfloat16 by autocast, the
    flash attention of `scaled_dot_product_attention` and fused AdamW.
    """
    import torch  # here, because a machine may lack it
    from _torch_mae import Mae

    objective, state = run.objective, start(run)
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
    model.to(device)
    image = torch.from_numpy(batch.image).to(device)
    order = torch.from_numpy(np.argsort(~visible, axis=1, kind="stable")).to(device)
    kept = int(visible[0].sum())
    is_cpu = device == "cpu"
    tolerance = 1e-4 if objective.setting.dtype == jnp.float32 else 2e-2
    with torch.no_grad():
        np.testing.assert_allclose(model(image, order, kept).item(), loss, rtol=tolerance)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, betas=(0.9, 0.95), fused=True)
    compute = model if is_cpu else torch.compile(model)

    def step() -> None:
        order = torch.rand(len(image), visible.shape[1], device=device).argsort(1)
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=not is_cpu):
            loss = compute(image, order, kept)
        loss.backward()
        optimizer.step()
        if not is_cpu:
            torch.cuda.synchronize()

    return step


def our_loss(run: Assembly, state: TrainState, batch: Batch) -> tuple[np.ndarray, float]:
    """Return the visible patches [B, N] of one step, and its loss."""
    rng = image_rngs(jax.random.key(1), 0, len(batch.image))
    arguments = state.params, state.objective_state, batch, rng, jnp.int32(0)
    views, _ = forward.represent(run.objective, *arguments)
    loss, _ = jax.jit(functools.partial(forward.mean_loss, run.objective))(*arguments)
    return np.asarray(views[0].visible), float(loss)


def products(dtype: Any, size: int = MATRIX, count: int = 1) -> Callable[[], Any]:
    """Return a function that multiplies matrices of `size` rows and columns `count` times.

    The matrices are random: products of constant ones need less power, so that a GPU runs faster.
    """
    matrix = (jax.random.normal(jax.random.key(0), (size, size)) / size**0.5).astype(dtype)

    @jax.jit
    def multiply(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, count, lambda _, x: x @ matrix, x)

    return lambda: jax.block_until_ready(multiply(matrix, matrix))


def time_in_turn(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Return the seconds of each step in each round; one more round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(times[1:]) for name, times in seconds.items()}


def flops_of(run: Assembly) -> float:
    """Return the FLOPs of an image in matrix products."""
    return model_flops(run, jax.eval_shape(lambda: init_state(run.objective, run.optimizer, 0)))
