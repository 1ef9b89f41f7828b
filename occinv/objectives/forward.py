"""Operations on any objective: initialize it, compute its loss, evaluate it.

The named scopes `ema`, `views`, `features` and `loss` appear in profiles and in compiled programs
(docs/performance.md).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from flax import linen as nn

from occinv.data.batch import Batch
from occinv.models.blocks import Layout
from occinv.models.vit import Pretrained, start_from
from occinv.objectives.base import Context, Objective, Obtained, Params, State, Terms
from occinv.objectives.ema import EMA
from occinv.rng import split
from occinv.schema import UserError
from occinv.size import sides, size_text
from occinv.transforms.view import View, unit_range


def bind(
    objective: Objective,
    params: Params,
    state: State,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array,
) -> tuple[Any, Context]:
    """Return the networks with their parameters, and the context of a forward pass."""
    networks = objective.networks
    target = state.get("target")
    if target is not None:
        target = networks.bind({"params": jax.lax.stop_gradient(target)})
    _, features_rng = split(rng, 2)  # `represent` uses the other key
    ctx = Context(features_rng, step, batch.label, batch.weight, state, target)
    return networks.bind({"params": params}), ctx


def init(
    objective: Objective, rng: jax.Array, pretrained: Pretrained | None = None
) -> tuple[Params, State]:
    """Initialize parameters by a scalar PRNG key, and make the state.

    The networks are initialized by a forward pass of one black image on one device. They start from
    those of `pretrained`, where given: only the encoder (see `start_from`), or all.

    Raises:
      UserError: `pretrained` does not fit.
    """
    setting = objective.setting
    plain = dataclasses.replace(
        setting, encoder=setting.encoder.clone(layout=Layout()), mesh=None, is_training=True
    )
    alone: Objective = dataclasses.replace(objective, setting=plain)
    encoder = setting.encoder
    sizes = (encoder.image_size, *(crop.size for crop in alone.crops))
    black = [jnp.zeros((1, *sides(size), encoder.channels)) for size in sizes]
    state: State = {
        name: part.init() if isinstance(part, Obtained) else part
        for name, part in alone.state.items()
    }
    zero, ones = jnp.zeros((), jnp.int32), jnp.ones(1)
    rngs = rng[None]

    def forward(net: Any) -> Terms:
        views = alone.views(tuple(black) if alone.crops else black[0], rngs)
        ctx = Context(rngs, zero, jnp.zeros(1, jnp.int32), ones, state, net)
        return alone.loss(net, alone.features(net, views, ctx), views, ctx)

    params: Params = nn.init(forward, alone.networks, mutable=["params"])(rng)["params"]
    if pretrained is not None:
        params = start_networks(alone, params, pretrained)
    return params, {
        name: part.copy(params) if isinstance(part, EMA) else part for name, part in state.items()
    }


def start_networks(objective: Objective, fresh: Params, pretrained: Pretrained) -> Params:
    """Replace `fresh` networks by those of `pretrained`, which has the encoder alone or all.

    Raises:
      UserError: `pretrained` has other networks, or one of them has other shapes.
    """
    own, given, grid = objective.networks.encoder, pretrained.params, pretrained.grid
    encoder = start_from(own, fresh["encoder"], given["encoder"], grid)
    others = {name: value for name, value in given.items() if name != "encoder"}
    if others and given.keys() != fresh.keys():
        raise UserError(
            f"init_from: that run has the networks {', '.join(sorted(given))}, expected "
            f"{', '.join(sorted(fresh))}; use init=encoder"
        )
    for name, value in others.items():
        theirs, ours = jax.tree.map(jnp.shape, value), jax.tree.map(jnp.shape, fresh[name])
        if theirs != ours:
            raise UserError(
                f"init_from: {name} of that run has shapes {theirs}, expected {ours}; use its "
                "config, or init=encoder"
            )
        if "position" in value and grid != own.grid:
            raise UserError(
                f"init_from: {name} of that run has positions of {size_text(grid)} patches, "
                f"expected {size_text(own.grid)}; use its config, or init=encoder"
            )
    return {**fresh, **others, "encoder": encoder}


def update_target(objective: Objective, params: Params, state: State, step: jax.Array) -> State:
    """Update the EMA copies before step number `step`."""
    setting = objective.setting
    with jax.named_scope("ema"):
        moved = {
            name: part.update(state[name], params, step, setting.total_steps, setting.ema_power)
            for name, part in objective.state.items()
            if isinstance(part, EMA)
        }
    return {**state, **moved}


def represent(
    objective: Objective,
    params: Params,
    state: State,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array,
) -> tuple[tuple[View, ...], Any]:
    """Return the views of a batch and their features; `rng` is a key array [B]."""
    with jax.named_scope("views"):
        views_rng, _ = split(rng, 2)
        images = jax.tree.map(unit_range, (batch.image, *batch.crops))
        views = objective.views(images if batch.crops else images[0], views_rng)
    with jax.named_scope("features"):
        net, ctx = bind(objective, params, state, batch, rng, step)
        return views, objective.features(net, views, ctx)


def compare(
    objective: Objective,
    params: Params,
    state: State,
    views: tuple[View, ...],
    z: Any,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array,
) -> Terms:
    """Return the loss of features, with the whole next state."""
    with jax.named_scope("loss"):
        net, ctx = bind(objective, params, state, batch, rng, step)
        terms = objective.loss(net, z, views, ctx)
    return terms._replace(state={**state, **terms.state})


def terms_of(
    objective: Objective,
    params: Params,
    state: State,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array,
) -> Terms:
    """Return Eq. (1) for every image of a batch."""
    views, z = represent(objective, params, state, batch, rng, step)
    return compare(objective, params, state, views, z, batch, rng, step)


def weighted(
    terms: Terms, weight: jax.Array
) -> tuple[jax.Array, tuple[State, dict[str, jax.Array]]]:
    """Average `terms` by weight [B]: loss [], (state, metrics). Weights must not all be 0."""
    with jax.named_scope("loss"):
        weight = weight / weight.sum()
        metrics = {name: (weight * value).sum() for name, value in terms.metrics.items()}
        return (weight * terms.loss).sum(), (terms.state, metrics)


def mean_loss(
    objective: Objective,
    params: Params,
    state: State,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, tuple[State, dict[str, jax.Array]]]:
    """Return loss [], (state, metrics) of a batch. The train step differentiates this function.

    Args:
      objective: Any objective.
      params, state: Its parameters and state after the step before.
      batch: The global batch, B images.
      rng: key array [B], which depends on (seed, step, position) alone.
      step: int32 [], the number of steps taken.
    """
    state = update_target(objective, jax.lax.stop_gradient(params), state, step)
    return weighted(terms_of(objective, params, state, batch, rng, step), batch.weight)


def for_evaluation(objective: Objective) -> Objective:
    """Return the objective with `is_training` and drop path off."""
    setting = objective.setting
    encoder = setting.encoder.clone(drop_path=0.0)
    setting = dataclasses.replace(setting, encoder=encoder, is_training=False)
    return dataclasses.replace(objective, setting=setting)


def evaluate(
    objective: Objective,
    params: Params,
    state: State,
    batch: Batch,
    rng: jax.Array,
    step: jax.Array,
) -> dict[str, clu_metrics.Average]:
    """Return loss and metrics of a batch as averages to merge; padding does not count."""
    last_step = jnp.maximum(step - 1, 0)  # schedules such as DINO's are those of the last step
    terms = terms_of(objective, params, state, batch, rng, last_step)
    mask = batch.weight > 0

    def average(values: jax.Array) -> Any:
        if values.ndim > 1:
            return jax.vmap(average, in_axes=1)(values)
        return clu_metrics.Average.from_model_output(values, mask)

    return {name: average(value) for name, value in {"loss": terms.loss, **terms.metrics}.items()}
