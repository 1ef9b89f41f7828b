"""A batch taken in parts, one after the other, with the loss and the gradient of the whole batch.

Where each image's loss is its own, they are the means over the parts (`mean_of_parts`). Where
`measure` compares the images with each other, the parts are taken twice (`two_passes`): GradCache,
Gao et al. 2021, arXiv:2101.06983.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from occinv.data.batch import Batch
from occinv.objectives.base import Objective, weighted


def parted(arrays: Any, parts: int) -> Any:
    """The leading axis B of each array as [parts, B / parts].

    Part i has every `parts`-th image from i on, so that each device works on its own images.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), arrays
    )


def joined(arrays: Any) -> Any:
    """What `parted` has parted, as it was."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), arrays)


def mean_of_parts(function: Callable[..., Any], arguments: Any, parts: int) -> Any:
    """The mean of what `function` returns over equal parts of `arguments`.

    A state that every part moves alike (an EMA) is its own mean, and that of one that moves by what
    the part shows (a center) is what the whole batch gives.
    """
    if parts == 1:
        return function(*arguments)

    def add(carry: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, function(*part)), None

    stacked = parted(arguments, parts)
    shapes = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], stacked))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, stacked)
    return jax.tree.map(lambda x: x / parts, sums)


def two_passes(
    objective: Objective,
    params: Any,
    state: Any,
    batch: Batch,
    keys: jax.Array,
    step: jax.Array,
    parts: int,
) -> tuple[tuple[jax.Array, tuple[Any, dict[str, jax.Array]]], Any]:
    """What `jax.value_and_grad(objective.loss, has_aux=True)` returns, from parts of the batch.

    The first pass keeps of each part z1 and z2 alone. Loss, metrics and state follow from these for
    the whole batch at once, and so does the slope of the loss along each of them, which the second
    pass brings to the parameters, part by part. It holds for an objective that does not couple the
    batch before `measure`.
    """
    state = objective.advance(params, state, step)
    stacked = parted((batch, keys), parts)

    def represent(params: Any, part: Any) -> Any:
        views, z1, z2 = objective.represent(params, state, *part)
        return (z1, z2), views

    z, views = joined(jax.lax.map(lambda part: represent(params, part), stacked))

    def loss(params: Any, z: Any) -> Any:
        z1, z2 = z
        return weighted(objective.compare(params, state, views, z1, z2, batch.weight), batch.weight)

    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    outcome, (slope, slope_z) = gradient(params, z)

    def add(slope: Any, part: Any) -> tuple[Any, None]:
        images, slope_z = part
        _, pull, _ = jax.vjp(lambda params: represent(params, images), params, has_aux=True)
        return jax.tree.map(jnp.add, slope, *pull(slope_z)), None

    slope, _ = jax.lax.scan(add, slope, (stacked, parted(slope_z, parts)))
    return outcome, slope
