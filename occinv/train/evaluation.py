"""Evaluation during training: mean loss and metrics over the validation images, and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occinv import parallel
from occinv.data.batch import Batch
from occinv.objectives import forward
from occinv.objectives.base import Objective, Reconstructs
from occinv.rng import image_rngs
from occinv.train.prepare import Run
from occinv.train.shared import shared
from occinv.train.step import TrainState, join_state
from occinv.transforms.view import unit_range

NUM_PICTURES = 8


def make_evaluation(run: Run) -> Callable[[TrainState], dict[str, float]]:
    """Return a function from a state to the mean loss and metrics over the validation images.

    Padding does not count. If the images of a batch interact in the loss, padding would, too, so
    the incomplete last batch is skipped.
    """
    mesh = run.assembly.mesh
    objective = forward.for_evaluation(run.assembly.objective)
    compiled = _averages(objective, mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        if run.validation is None:
            return {}
        size, images = run.assembly.experiment.train.batch_size, len(run.validation.source)
        state = dataclasses.replace(join_state(run.assembly, state), opt_state=None)
        total: Any = None
        for number, batch in enumerate(run.validation.batches()):
            if objective.couples != "nothing" and (number + 1) * size > images:
                break
            found = compiled(state, parallel.put_batch(mesh, batch), jnp.int32(number))
            found = jax.tree.map(np.float64, parallel.fetch(found))
            total = found if total is None else {n: m.merge(found[n]) for n, m in total.items()}
        if total is None:
            return {}
        means = {name: average.compute() for name, average in total.items()}
        return objective.summarize({n: float(m) if m.ndim == 0 else m for n, m in means.items()})

    return evaluate


@shared
def _averages(
    objective: Objective, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, Batch, jax.Array], Any]:
    """Return the averages of a batch under `jax.jit`; its last argument is the batch's number."""

    def averages(state: TrainState, batch: Batch, number: jax.Array) -> Any:
        params, own = parallel.gather(mesh, (state.params, state.objective_state))
        # Every evaluation uses the same masks, so that results are comparable.
        rng = image_rngs(jax.random.key(0), number, batch.label.shape[0])
        return forward.evaluate(objective, params, own, batch, rng, state.step)

    return jax.jit(averages, out_shardings=parallel.replicated(mesh))


def pictures(run: Run, state: TrainState) -> dict[str, np.ndarray]:
    """Return reconstructions of the first validation images, float32 [8, H, W, 3] each, if any."""
    objective = run.assembly.objective
    if run.validation is None or jax.process_count() > 1:
        return {}
    if not isinstance(objective, Reconstructs):
        return {}
    images = run.validation.batch(0).image[:NUM_PICTURES]
    params = jax.device_get(join_state(run.assembly, state).params)
    return {name: np.asarray(images) for name, images in _show(objective)(params, images).items()}


@shared
def _show(objective: Any) -> Callable[[Any, np.ndarray], dict[str, jax.Array]]:
    """Return the reconstruction of parameters and images under `jax.jit`."""

    @jax.jit
    def show(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        pixels = unit_range(images)
        rng = image_rngs(jax.random.key(0), jnp.int32(0), len(images))
        view = forward.for_evaluation(objective).views(pixels, rng)[0]
        return objective.reconstruct(params, pixels, view.visible)._asdict()

    return show
