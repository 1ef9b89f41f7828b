"""AdamW and LARS with the official parameter groups, warm-up, cosine and layer-wise decay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, KeyPath, SequenceKey, tree_map_with_path

from occinv.objectives.base import ParamGroup
from occinv.parallel import STACK
from occinv.schema import Optimizer

# Each choice of `optimizer.decay` includes all earlier ones.
DECAYED = {
    "kernels": ("kernel", "relative_position"),  # 2-D parameters, as in PyTorch code
    "tokens": ("class_token", "mask_token", "registers"),
    "positions": ("position",),
    "all": ("bias", "scale"),
}


def learning_rate(config: Optimizer, batch_size: int, warmup: int, steps: int) -> optax.Schedule:
    """Return linear warm-up from 0, then a half cosine to `min_lr` (`lr_sched.py` of MAE).

    The peak is base_lr · batch_size / 256. `warmup` and `steps` count optimizer steps.
    """
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.base_lr * batch_size / 256,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.min_lr,
    )


def is_decayed(path: KeyPath, config: Optimizer) -> bool:
    """Whether weight decay acts on a parameter: on matrices, and on what `config.decay` adds.

    The official MAE decays class and mask tokens, too, in pretraining, and only matrices in
    fine-tuning (`no_weight_decay` of models_vit.py); DINO all but norms and biases
    (`get_params_groups`), MoCo v3 everything.
    """
    name = path[-1].key if isinstance(path[-1], DictKey) else ""
    groups = list(DECAYED)
    return any(name in DECAYED[g] for g in groups[: groups.index(config.decay) + 1])


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


def block_number(path: KeyPath) -> int | None:
    """Return the number of the block that a parameter of `split_blocks` belongs to."""
    return next((key.idx for key in path if isinstance(key, SequenceKey)), None)


def make_optimizer(
    config: Optimizer,
    schedule: optax.Schedule,
    steps: int = 1,
    groups: Mapping[tuple[str, ...], ParamGroup] | None = None,
) -> optax.GradientTransformation:
    """Build the optimizer of a config's `optimizer` section.

    Args:
      config: The section.
      schedule: The learning rate by step.
      steps: The length of the run, over which the weight decay changes if it does.
      groups: Parameter groups by path: a learning-rate factor, a later start, or frozen. Before
        its start a parameter has no update, decay or moments, as in PyTorch for a parameter
        without a gradient.
    """
    groups = groups or {}

    def group_of(path: KeyPath) -> ParamGroup:
        keys = tuple(key.key for key in path if isinstance(key, DictKey))
        below = (group for start, group in groups.items() if keys[: len(start)] == start)
        return next(below, ParamGroup())

    def rule(start: int | None) -> optax.GradientTransformation:
        if start is None:
            return optax.set_to_zero()
        inner = update_rule(config, schedule, steps, start)
        return optax.transforms.conditionally_mask(inner, lambda step: step >= start)

    def labels(params: Any) -> Any:
        return tree_map_with_path(lambda path, _: str(group_of(path).start), params)

    def scaled(updates: Any, params: Any) -> Any:
        if config.layer_decay != 1:
            updates = jax.tree.map(jnp.multiply, updates, layer_scales(params, config.layer_decay))
        return tree_map_with_path(lambda path, x: group_of(path).lr_scale * x, updates)

    update = update_rule(config, schedule, steps, 0)
    later = {str(group.start): rule(group.start) for group in groups.values() if group.start != 0}
    is_scaled = config.layer_decay != 1 or any(group.lr_scale != 1 for group in groups.values())
    return optax.chain(
        clipping(config),
        optax.partition({"0": update, **later}, labels) if later else update,
        optax.stateless(scaled) if is_scaled else optax.identity(),
    )


def update_rule(
    config: Optimizer, schedule: optax.Schedule, steps: int, start: int
) -> optax.GradientTransformation:
    """Return AdamW as in PyTorch, or the official LARS, for parameters trained from step `start`.

    In AdamW, decay is decoupled and multiplied by the learning rate. In LARS (`lars.py` of the
    official MAE and MoCo v3) only matrices decay and have a trust ratio.
    """
    end = config.final_weight_decay

    def selected(config: Optimizer) -> Callable[[Any], Any]:
        return lambda params: tree_map_with_path(lambda path, _: is_decayed(path, config), params)

    def weight_decay(step: jax.Array) -> jax.Array:
        assert end is not None
        done = (step + start).astype(jnp.float32) / steps
        cosine = (1 + jnp.cos(math.pi * done)) / 2
        return end + (config.weight_decay - end) * cosine

    rate = optax.scale_by_learning_rate(lambda step: schedule(step + start))
    if config.name == "lars":
        matrices = selected(dataclasses.replace(config, decay="kernels"))
        trust_ratio = optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient)
        return optax.chain(
            optax.add_decayed_weights(config.weight_decay, matrices),
            optax.masked(trust_ratio, matrices),
            optax.trace(config.momentum),
            rate,
        )
    decay = config.weight_decay if end is None else weight_decay
    return optax.chain(
        optax.scale_by_adam(*config.betas),
        optax.add_decayed_weights(decay, selected(config)),
        rate,
    )


def clipping(config: Optimizer) -> optax.GradientTransformation:
    """Clip gradients to `clip_norm`: by their global norm, or each by its own norm (DINO)."""
    limit = config.clip_norm
    if limit is None:
        return optax.identity()
    if not config.clip_each:
        return optax.clip_by_global_norm(limit)

    def clip(path: KeyPath, gradient: jax.Array) -> jax.Array:
        # In a stack each block's slice is a parameter.
        first = 1 if DictKey(STACK) in path and block_number(path) is None else 0
        axes = tuple(range(first, gradient.ndim))
        norm = jnp.sqrt(jnp.square(gradient).sum(axes, keepdims=True))
        return gradient * jnp.minimum(1, limit / (norm + 1e-6))

    return optax.stateless(lambda updates, params: tree_map_with_path(clip, updates))
