"""What a run computes, made of its config alone: no data is opened, and nothing runs.

`train` and `plan` take it from here, so that the step that is planned is the one that is trained.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from occinv import parallel
from occinv.data.batch import Batch
from occinv.models import vit
from occinv.models.blocks import Layout
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.schema import Experiment, UserError
from occinv.train.flops import matmul_flops
from occinv.train.optimizer import learning_rate, make_optimizer
from occinv.train.step import make_step

# XLA's CPU compiler copies AdamW's moments at each step unless it is told to look closely.
FOR_CPU = {"xla_cpu_copy_insertion_use_region_analysis": True}


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The part of a run that does not need its data."""

    experiment: Experiment
    mesh: jax.sharding.Mesh
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps: int
    epoch: int  # images in an epoch


def assemble(
    experiment: Experiment, mesh: jax.sharding.Mesh, num_classes: int, epoch: int
) -> Assembly:
    """Objective, optimizer and schedule over `mesh` for `epoch` images of `num_classes` classes.

    Raises UserError where the config does not fit the mesh or itself.
    """
    data, train = experiment.data, experiment.train
    parallel.check_batch(mesh, train.batch_size)
    part = train.batch_size // train.accumulate
    parallel.check_batch(mesh, part, "train.batch_size / train.accumulate")
    steps = train.duration.in_steps(train.batch_size, epoch)
    warmup = experiment.optimizer.warmup.in_steps(train.batch_size, epoch)
    if steps < 1:
        raise UserError(
            f"train.duration={train.duration} is less than one step of {train.batch_size} images "
            f"over the {epoch} of the data"
        )
    if warmup > steps:
        raise UserError(
            f"optimizer.warmup={experiment.optimizer.warmup} is longer than "
            f"train.duration={train.duration}"
        )
    dtype = parallel.compute_dtype(train.precision, mesh)
    layout = Layout(remat=train.remat, mesh=mesh)
    encoder = vit.make_vit(experiment.encoder, data.image_size, dtype, layout)
    setting = Setting(encoder, num_classes, steps, dtype, train.batch_size, epoch, mesh)
    objective = make_objective(experiment.objective, setting)
    if train.accumulate > 1 and objective.couples_before_measure:
        raise UserError(
            f"train.accumulate={train.accumulate}: {experiment.objective['name']} mixes the images "
            "of a batch (a batch norm, Mixup or CutMix), so parts of it have another loss; use 1"
        )
    schedule = learning_rate(experiment.optimizer, train.batch_size, warmup, steps)
    optimizer = make_optimizer(
        experiment.optimizer, schedule, steps, objective.learns_late, objective.rate_factors
    )
    return Assembly(experiment, mesh, objective, optimizer, schedule, steps, epoch)


def batch_shapes(run: Assembly) -> Batch:
    """The shapes and dtypes of a global batch."""
    count = run.experiment.train.batch_size

    def images(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8)

    return Batch(
        image=images(run.experiment.data.image_size),
        label=jax.ShapeDtypeStruct((count,), jnp.int32),
        index=jax.ShapeDtypeStruct((count,), jnp.int32),
        weight=jax.ShapeDtypeStruct((count,), jnp.float32),
        crops=tuple(images(crop.size) for crop in run.objective.crops),
    )


def trace_step(run: Assembly, state: Any) -> Any:
    """The train step for the global batch on the mesh, traced: it can be counted and compiled.

    `state` is a TrainState, or the shapes of one.
    """
    sharding = parallel.of_state(run.mesh, state)
    is_cpu = run.mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        make_step(run.objective, run.optimizer, run.experiment.train.accumulate),
        in_shardings=(sharding, parallel.by_image(run.mesh)),
        out_shardings=(sharding, parallel.replicated(run.mesh)),
        donate_argnums=0,
        compiler_options=FOR_CPU if is_cpu else None,
    ).trace(state, batch_shapes(run))


def model_flops(run: Assembly, state: Any) -> float:
    """FLOPs an image in the matrix products of a step, forward and backward, each counted once.

    What a step computes again to save memory is not in it; `traced_flops` of the step has that.
    """
    objective = run.objective
    plain = objective.encoder.clone(layout=Layout(unroll=sys.maxsize))
    setting = dataclasses.replace(objective.setting, encoder=plain)
    step = make_step(dataclasses.replace(objective, setting=setting), run.optimizer)
    return matmul_flops(step, state, batch_shapes(run)) / run.experiment.train.batch_size
