"""The one train step, for every objective: its state, its function, and its compiled program.

`Assembly` holds objective, optimizer and schedule of a config, `make_step` returns the function of
a step, and `trace_step` traces it for the mesh. `train` and `plan` use the same step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from occinv import parallel
from occinv.data.batch import Batch
from occinv.models.blocks import Layout, fill_blocks, join_blocks, split_blocks
from occinv.models.vit import Pretrained, vit_of
from occinv.objectives import forward
from occinv.objectives.base import FROZEN, Objective, ParamGroup, Setting, make_objective
from occinv.rng import image_rngs
from occinv.schema import Encoder, Experiment, Optimizer, Train, UserError
from occinv.size import Size, sides
from occinv.train.accumulation import grad_cache, mean_of_parts
from occinv.train.lengths import Lengths, lengths_of
from occinv.train.monitors import gradient_noise, layer_norms
from occinv.train.optimizer import make_optimizer
from occinv.train.shared import shared

Metrics = dict[str, jax.Array]

# Without this option XLA's CPU compiler copies AdamW's moments at each step.
FOR_CPU = {"xla_cpu_copy_insertion_use_region_analysis": True}

# Devices that compute so much faster than they read that stored activations are the bottleneck:
# more than 500 FLOPs for each byte (docs/performance.md).
RECOMPUTING = {"TPU v6 lite"}


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Objective, optimizer and schedule of a run, without its data.

    Attributes:
      experiment: The config.
      mesh: The devices.
      objective, optimizer, schedule: As configured; the schedule is the learning rate by step.
      steps: The length of the run, which `train.stop_after` may make shorter than the schedules.
      epoch: The number of images in an epoch.
    """

    experiment: Experiment
    mesh: jax.sharding.Mesh
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps: int
    epoch: int


def assemble(
    experiment: Experiment,
    mesh: jax.sharding.Mesh,
    num_classes: int,
    epoch: int,
    has_validation: bool = True,
) -> Assembly:
    """Make objective, optimizer and schedule for `epoch` images of `num_classes` classes.

    Raises:
      UserError: The config contradicts itself or does not fit the mesh.
    """
    train, config = experiment.train, experiment.optimizer
    parallel.check_batch(mesh, train.batch_size)
    part = train.batch_size // train.accumulate
    parallel.check_batch(mesh, part, "train.batch_size / train.accumulate")
    lengths = lengths_of(experiment, epoch)
    steps = lengths.steps
    dtype = parallel.compute_dtype(train.precision, mesh)
    layout = Layout(remat=recomputes(train, mesh), attention=train.attention, mesh=mesh)
    setting = Setting(
        vit_of(experiment, dtype, layout),
        num_classes,
        steps,
        dtype,
        train.batch_size,
        epoch,
        mesh,
        has_validation=has_validation,
        ema_power=train.batch_size / (config.ema_batch or train.batch_size),
    )
    objective = make_objective(experiment.objective, setting)
    if train.batch_size == 1 and objective.couples != "nothing":
        raise UserError(
            f"train.batch_size=1: the loss of {experiment.objective['name']} compares the images "
            "of a batch; use 2 or more"
        )
    if train.accumulate > 1 and objective.couples == "features":
        raise UserError(
            f"train.accumulate={train.accumulate}: {experiment.objective['name']} mixes the images "
            "of a batch (batch norm, Mixup or CutMix), so its parts have another loss; use 1"
        )
    if "noise_scale" in train.monitors and (train.accumulate == 1 or objective.couples == "loss"):
        raise UserError(
            f"train.monitors={train.monitors}: noise_scale needs a loss that does not compare the "
            "images of a batch, and its gradient in parts; set train.accumulate=2, or leave it out"
        )
    if "attention" in train.monitors and not experiment.encoder.class_token:
        raise UserError(
            f"train.monitors={train.monitors} with encoder.class_token=False: attention is that of "
            "the class token; leave it out"
        )
    groups = {**frozen_parts(experiment.encoder, config.decay), **objective.param_groups}
    schedule, optimizer = _optimizer(config, train.batch_size, lengths, tuple(groups.items()))
    return Assembly(experiment, mesh, objective, optimizer, schedule, lengths.end, epoch)


@shared
def _optimizer(
    config: Optimizer,
    batch_size: int,
    lengths: Lengths,
    groups: tuple[tuple[tuple[str, ...], ParamGroup], ...],
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Return the learning rate by step, and the optimizer."""
    schedule = lengths.schedule(config, batch_size)
    peak = config.peak(batch_size)
    return schedule, make_optimizer(config, schedule, lengths.steps, dict(groups), peak)


def frozen_parts(encoder: Encoder, decay: str) -> dict[tuple[str, ...], ParamGroup]:
    """Return the parts of the encoder without a gradient that `optimizer.decay` would change."""
    groups: dict[tuple[str, ...], ParamGroup] = {}
    if not encoder.train_patch:
        groups["encoder", "patch_embed"] = FROZEN
    if not encoder.train_position and decay in ("positions", "all"):
        groups["encoder", "position"] = FROZEN
    return groups


def recomputes(train: Train, mesh: jax.sharding.Mesh) -> bool:
    """Whether blocks are recomputed in the backward pass: `train.remat`, or by the device."""
    if train.remat is not None:
        return train.remat
    return mesh.devices.flat[0].device_kind in RECOMPUTING


@struct.dataclass
class TrainState:
    """Everything that a step reads and changes: one pytree, which a checkpoint holds whole.

    Attributes:
      step: int32 [], the number of steps taken.
      seed: uint32 [], which every draw depends on. Another seed needs no recompilation.
      params: Parameters by network: `encoder` and those of M.
      objective_state: The objective's own state, such as an EMA target.
      opt_state: The optimizer's state.
      nonfinite: int32 [], steps skipped because their loss or gradient was not finite.
      first_nonfinite: int32 [], the first such step, or 0.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    objective_state: Any
    opt_state: Any
    nonfinite: jax.Array
    first_nonfinite: jax.Array


def init_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: jax.Array | int,
    pretrained: Pretrained | None = None,
) -> TrainState:
    """Return the state before the first step, from the seed and `pretrained` networks, if any."""
    rng = jax.random.fold_in(jax.random.key(seed), 0)
    params, objective_state = forward.init(objective, rng, pretrained)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        objective_state=objective_state,
        opt_state=optimizer.init(params),
        nonfinite=zero,
        first_nonfinite=zero,
    )


@shared
def initializer(
    objective: Objective, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh
) -> Callable[[jax.Array | np.uint32, Pretrained | None], TrainState]:
    """Return `init_state` under `jax.jit`, a function of seed and `pretrained`, sharded."""

    @jax.jit  # so that the shapes and the program share one trace
    def init(seed: jax.Array, pretrained: Pretrained | None) -> TrainState:
        return init_state(objective, optimizer, seed, pretrained)

    shapes = jax.eval_shape(init, np.uint32(0), None)
    return jax.jit(init, out_shardings=parallel.of_state(mesh, shapes))


def as_items(state: TrainState) -> dict[str, Any]:
    """Return the items of a checkpoint. Parameters are their own item, to be loaded alone."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {"params": fields.pop("params"), "rest": fields}


def split_state(run: Assembly, state: TrainState) -> TrainState:
    """Return the state in the form that the step computes with on the devices of the run.

    On CPU each block has its own arrays (`split_blocks`), unless the state is sharded.
    """
    if not is_split(run):
        return state
    params, own = split_blocks((state.params, state.objective_state))
    # A part of the optimizer that skips the blocks has a stack without arrays, and so no depth.
    opt_state = fill_blocks(jax.eval_shape(run.optimizer.init, params), state.opt_state)
    return dataclasses.replace(state, params=params, objective_state=own, opt_state=opt_state)


def join_state(run: Assembly, state: TrainState) -> TrainState:
    """Invert `split_state`: checkpoints and evaluations have the same form on every device."""
    return jax.jit(join_blocks)(state) if is_split(run) else state


def is_split(run: Assembly) -> bool:
    """Whether `split_state` splits: on CPU, unless the state is sharded."""
    is_cpu = run.mesh.devices.flat[0].platform == "cpu"
    return is_cpu and not parallel.is_sharded(run.mesh)


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    monitors: Sequence[str] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return the function (state, global batch) -> (state, metrics) of a step.

    With `accumulate` the batch is computed in that many parts, with the same gradient in less
    memory. A step whose loss or gradient is not finite updates only the counters. `monitors` adds
    metrics (`train.monitors`). Named scopes give each part of the step its name in profiles and in
    the compiled program (docs/performance.md).
    """
    mesh = objective.setting.mesh
    gradient: Any = jax.value_and_grad(
        functools.partial(forward.mean_loss, objective), has_aux=True
    )
    parts = accumulate
    if accumulate > 1 and objective.couples == "loss":
        gradient, parts = functools.partial(grad_cache, objective, parts=accumulate), 1

    def step(train: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        with jax.named_scope("rng"):
            run_rng = jax.random.fold_in(jax.random.key(train.seed), 1)
            rng = image_rngs(run_rng, train.step, batch.label.shape[0])
        with jax.named_scope("gather"):
            params, state = parallel.gather(mesh, (train.params, train.objective_state))

        def part(batch: Batch, rng: jax.Array) -> Any:
            (loss, (after, metrics)), grads = gradient(params, state, batch, rng, train.step)
            if "noise_scale" in monitors:
                metrics["part"] = optax.tree.norm(grads, squared=True)
            with jax.named_scope("scatter"):
                return loss, metrics, parallel.scatter(mesh, grads), after

        loss, metrics, grads, state = mean_of_parts(part, (batch, rng), parts)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, train.opt_state, train.params)
            params = optax.apply_updates(train.params, updates)
        with jax.named_scope("finite_check"):
            norm = optax.tree.norm(grads)
            finite = jnp.isfinite(loss) & jnp.isfinite(norm)
            params, state, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old),
                (params, state, opt_state),
                (train.params, train.objective_state, train.opt_state),
            )
        if "norms" in monitors:
            metrics |= layer_norms("gradient_norm", grads) | layer_norms("update_norm", updates)
        if "noise_scale" in monitors:
            size = batch.label.shape[0]
            metrics |= gradient_noise(metrics.pop("part"), norm**2, size, accumulate)
        is_first = ~finite & (train.nonfinite == 0)
        after = TrainState(
            step=train.step + 1,
            seed=train.seed,
            params=params,
            objective_state=state,
            opt_state=opt_state,
            nonfinite=train.nonfinite + (~finite).astype(jnp.int32),
            first_nonfinite=jnp.where(is_first, train.step + 1, train.first_nonfinite),
        )
        return after, {"loss": loss, "gradient_norm": norm, **metrics}

    return step


def batch_shapes(run: Assembly) -> Batch:
    """Return the shapes and dtypes of a global batch."""
    count, data = run.experiment.train.batch_size, run.experiment.data

    def images(size: Size) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *sides(size), data.channels), jnp.uint8)

    return Batch(
        image=images(data.image_size),
        label=jax.ShapeDtypeStruct((count,), jnp.int32),
        index=jax.ShapeDtypeStruct((count,), jnp.int32),
        weight=jax.ShapeDtypeStruct((count,), jnp.float32),
        crops=tuple(images(crop.size) for crop in run.objective.crops),
    )


def trace_step(run: Assembly, state: Any) -> Any:
    """Trace the step for the global batch on the mesh, to count its FLOPs or to compile it.

    `state` is a TrainState or the shapes of one. `trace_step(…).lower().compile()` is the program
    (state, batch) -> (state, metrics), which reuses the memory of the state it is given.
    """
    train = run.experiment.train
    step = run.objective, run.optimizer, train.accumulate, train.monitors
    leaves, form = jax.tree.flatten(parallel.of_state(run.mesh, state))
    return _jitted(step, run.mesh, form, tuple(leaves)).trace(state, batch_shapes(run))


@shared
def _jitted(
    step: tuple[Objective, optax.GradientTransformation, int, tuple[str, ...]],
    mesh: jax.sharding.Mesh,
    form: Any,
    leaves: tuple[jax.sharding.Sharding, ...],
) -> Any:
    """Return the step under `jax.jit`; `leaves` and `form` are the shardings of the state."""
    sharding = jax.tree.unflatten(form, leaves)
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        make_step(*step),
        in_shardings=(sharding, parallel.by_image(mesh)),
        out_shardings=(sharding, parallel.replicated(mesh)),
        donate_argnums=0,
        compiler_options=FOR_CPU if is_cpu else None,
    )
