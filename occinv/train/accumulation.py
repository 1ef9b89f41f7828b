"""Gradient accumulation, with the loss and the gradient of the whole batch.

If the losses of images are independent, the parts are averaged (`mean_of_parts`). If the loss
compares the images of the batch, the parts are computed twice (`grad_cache`): GradCache, Gao et al.
2021, arXiv:2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from occinv.data.batch import Batch
from occinv.objectives import forward
from occinv.objectives.base import Objective


def split_batch(arrays: Any, parts: int) -> Any:
    """Split the leading axis B of each array: [parts, B / parts].

    Part i has the images i, i + parts, …, so that each device works on its own images.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), arrays
    )


def join_parts(arrays: Any) -> Any:
    """Invert `split_batch`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), arrays)


def mean_of_parts(function: Callable[..., Any], arguments: Any, parts: int) -> Any:
    """Return the mean of `function` over equal parts of `arguments`.

    The state may be averaged, too: all parts apply the same EMA update, and each updates a center
    with its own images.
    """
    if parts == 1:
        return function(*arguments)

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, function(*part)), None

    with jax.named_scope("accumulate"):
        stacked = split_batch(arguments, parts)
        shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], stacked))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, _ = jax.lax.scan(add, zeros, stacked)
        return jax.tree.map(lambda x: x / parts, sums)


def grad_cache(
    objective: Objective,
    params: Any,
    state: Any,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array,
    parts: int,
) -> tuple[tuple[jax.Array, tuple[Any, dict[str, jax.Array]]], Any]:
    """Return `jax.value_and_grad(mean_loss, has_aux=True)` of the batch, computed part by part.

    The first pass keeps only the features of each part. Loss, metrics, state and the gradient of
    the features follow from these for the whole batch at once. The second pass propagates this
    gradient to the parameters, part by part. It needs an objective whose features do not couple the
    batch.
    """
    state = forward.update_target(objective, params, state, step)
    with jax.named_scope("accumulate"):
        stacked = split_batch((batch, rng), parts)

    def represent(params: Any, part: Any) -> Any:
        images, rng = part
        views, z = forward.represent(objective, params, state, images, rng, step)
        return z, views

    with jax.named_scope("accumulate"):
        z, views = join_parts(jax.lax.map(lambda part: represent(params, part), stacked))

    def loss(params: Any, z: Any) -> Any:
        terms = forward.compare(objective, params, state, views, z, batch, rng, step)
        return forward.weighted(terms, batch.weight)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    outcome, (slope, slope_z) = gradient(params, z)

    def add(slope: Any, part: Any) -> tuple[Any, None]:
        images, slope_z = part
        _, pull, _ = jax.vjp(lambda params: represent(params, images), params, has_aux=True)
        return jax.tree.map(jnp.add, slope, *pull(slope_z)), None

    with jax.named_scope("accumulate"):
        slope, _ = jax.lax.scan(add, slope, (stacked, split_batch(slope_z, parts)))
    return outcome, slope
