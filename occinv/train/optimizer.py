"""The optimizer of a run: its learning rate, parameter groups and layer-wise decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, KeyPath, tree_map_with_path

from occinv.objectives.base import ParamGroup
from occinv.parallel import STACK
from occinv.schema import Optimizer
from occinv.train.update_rules import block_number, clipping, update_rule


def learning_rate(
    config: Optimizer, batch_size: int, warmup: int, steps: int, cooldown: int = 0
) -> optax.Schedule:
    """Return the learning rate by step: linear warm-up from 0, then a half cosine to `min_lr`.

    It is that of `lr_sched.py` of MAE. With `schedule=wsd` it stays at the peak after the warm-up
    until the last `cooldown` steps, in which it falls linearly to `min_lr` (Hägele et al., 2024,
    "Scaling laws and compute-optimal training beyond fixed training durations").

    All lengths count optimizer steps.
    """
    peak = config.peak(batch_size)
    if config.schedule == "wsd":
        rise = optax.linear_schedule(0.0, peak, warmup)
        fall = optax.linear_schedule(peak, config.min_lr, cooldown)
        level = optax.constant_schedule(peak)
        return optax.join_schedules([rise, level, fall], [warmup, steps - cooldown])
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.min_lr,
    )


def layer_scales(params: Any, layer_decay: float) -> Any:
    """Return the learning-rate factor of each parameter, shaped to broadcast over it.

    The factor is layer_decay ** (layers above): 1 for heads and the last norm; each lower block has
    one more power, and the embedding the most (`lr_decay.py` of the official MAE).
    """
    stack = params["encoder"]["blocks"][STACK]
    depth = len(stack if isinstance(stack, tuple) else jax.tree.leaves(stack)[0])

    def scale(path: KeyPath, value: jax.Array) -> jax.Array:
        keys = [key.key for key in path if isinstance(key, DictKey)]
        if keys[0] != "encoder" or keys[1] == "norm":
            return jnp.ones(())
        if keys[1] == "relative_position" and value.shape[0] != depth:
            return jnp.ones(())  # a shared table is not scaled, like the head (`optim_factory.py`)
        if (number := block_number(path)) is not None:
            return jnp.asarray(layer_decay ** float(depth - number))
        if keys[1] in ("blocks", "relative_position"):
            above = depth - jnp.arange(depth, dtype=jnp.float32)
            return (layer_decay**above).reshape(depth, *[1] * (value.ndim - 1))
        return jnp.asarray(layer_decay ** (depth + 1.0))

    return tree_map_with_path(scale, params)


def make_optimizer(
    config: Optimizer,
    schedule: optax.Schedule,
    steps: int = 1,
    groups: Mapping[tuple[str, ...], ParamGroup] | None = None,
    peak: float = 1.0,
) -> optax.GradientTransformation:
    """Build the optimizer of a config's `optimizer` section.

    Args:
      config: The section.
      schedule: The learning rate by step.
      steps: The length of the run, over which the weight decay changes if it does.
      groups: Parameter groups by path: a learning-rate factor, a later start, or frozen. Before
        its start a parameter has no update, decay or moments, as in PyTorch for a parameter
        without a gradient.
      peak: The highest learning rate, which independent weight decay is relative to.
    """
    groups = groups or {}

    def group_of(path: KeyPath) -> ParamGroup:
        keys = tuple(key.key for key in path if isinstance(key, DictKey))
        below = (group for start, group in groups.items() if keys[: len(start)] == start)
        return next(below, ParamGroup())

    def rule(start: int | None) -> optax.GradientTransformation:
        if start is None:
            return optax.set_to_zero()
        inner = update_rule(config, schedule, steps, start, peak)
        return optax.transforms.conditionally_mask(inner, lambda step: step >= start)

    def labels(params: Any) -> Any:
        return tree_map_with_path(lambda path, _: str(group_of(path).start), params)

    def scaled(updates: Any, params: Any) -> Any:
        if config.layer_decay != 1:
            updates = jax.tree.map(jnp.multiply, updates, layer_scales(params, config.layer_decay))
        return tree_map_with_path(lambda path, x: group_of(path).lr_scale * x, updates)

    update = update_rule(config, schedule, steps, 0, peak)
    later = {str(group.start): rule(group.start) for group in groups.values() if group.start != 0}
    is_scaled = config.layer_decay != 1 or any(group.lr_scale != 1 for group in groups.values())
    return optax.chain(
        clipping(config),
        optax.partition({"0": update, **later}, labels) if later else update,
        optax.stateless(scaled) if is_scaled else optax.identity(),
    )
