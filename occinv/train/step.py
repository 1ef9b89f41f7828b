"""The one train step, for every objective."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from occinv.data.batch import Batch
from occinv.objectives.base import Objective
from occinv.rng import image_rngs
from occinv.train.accumulation import mean_of_parts, two_passes

Metrics = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """All that a step reads and changes: one pytree, which a checkpoint holds whole."""

    step: jax.Array  # int32 [], steps taken
    seed: jax.Array  # uint32 [], what every draw follows from; data, so that seeds share a program
    params: Any
    state: Any  # the objective's own: an EMA target
    optimizer: Any
    nonfinite: jax.Array  # int32 [], steps skipped because their loss or gradient was not finite
    first_nonfinite: jax.Array  # int32 [], the first such step; 0 before


def init_state(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    seed: jax.Array | int,
    encoder: Any = None,
) -> TrainState:
    """The state before the first step. It follows from the seed, and from `encoder` where given."""
    params, state = objective.init(jax.random.fold_in(jax.random.key(seed), 0), encoder)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        state=state,
        optimizer=optimizer.init(params),
        nonfinite=zero,
        first_nonfinite=zero,
    )


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function (state, global batch) -> (state, metrics), to be jitted.

    With `accumulate` the batch is taken in that many parts, one after the other, which gives the
    same gradient in less memory for an objective that does not couple the batch before `measure`.
    A step whose loss or gradient is not finite changes nothing but the counters.
    """
    layout = objective.encoder.layout
    gradient = jax.value_and_grad(objective.loss, has_aux=True)
    parts = accumulate
    if accumulate > 1 and objective.couples_batch:
        gradient, parts = functools.partial(two_passes, objective, parts=accumulate), 1

    def step(train: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        run_key = jax.random.fold_in(jax.random.key(train.seed), 1)
        keys = image_rngs(run_key, train.step, batch.label.shape[0])
        params, state = layout.ready((train.params, train.state))

        def part(batch: Batch, keys: jax.Array) -> Any:
            (loss, (after, metrics)), grads = gradient(params, state, batch, keys, train.step)
            return loss, metrics, layout.parted(grads), after

        loss, metrics, grads, state = mean_of_parts(part, (batch, keys), parts)
        norm = optax.tree.norm(grads)
        updates, optimizer_state = optimizer.update(grads, train.optimizer, train.params)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        params, state, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (optax.apply_updates(train.params, updates), state, optimizer_state),
            (train.params, train.state, train.optimizer),
        )
        after = TrainState(
            step=train.step + 1,
            seed=train.seed,
            params=params,
            state=state,
            optimizer=optimizer_state,
            nonfinite=train.nonfinite + (~finite).astype(jnp.int32),
            first_nonfinite=jnp.where(
                finite | (train.nonfinite > 0), train.first_nonfinite, train.step + 1
            ),
        )
        return after, {"loss": loss, "gradient_norm": norm, **metrics}

    return step
