"""The update rules of `optimizer.name`, weight decay and gradient clipping, built from Optax.

The parameters of transformer blocks are stacked along a leading axis on accelerators, and split by
block on CPUs. `by_parameter` applies a rule that uses norms, or a matrix as a whole, to each
block's own array in both forms.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.tree_util import DictKey, KeyPath, SequenceKey, tree_map_with_path

from occinv.parallel import STACK
from occinv.schema import Optimizer

# Each choice of `optimizer.decay` includes all earlier ones.
DECAYED = {
    "kernels": ("kernel", "relative_position"),  # 2-D parameters, as in PyTorch code
    "tokens": ("class_token", "mask_token", "registers"),
    "positions": ("position",),
    "all": ("bias", "scale"),
}


def is_decayed(path: KeyPath, config: Optimizer) -> bool:
    """Whether weight decay acts on a parameter: on matrices, and on what `config.decay` adds.

    The official MAE decays class and mask tokens, too, in pretraining, and only matrices in
    fine-tuning (`no_weight_decay` of models_vit.py); DINO all but norms and biases
    (`get_params_groups`), MoCo v3 everything.
    """
    name = path[-1].key if isinstance(path[-1], DictKey) else ""
    groups = list(DECAYED)
    return any(name in DECAYED[g] for g in groups[: groups.index(config.decay) + 1])


def block_number(path: KeyPath) -> int | None:
    """Return the number of the block that a parameter of `split_blocks` belongs to."""
    return next((key.idx for key in path if isinstance(key, SequenceKey)), None)


def is_stacked(path: KeyPath) -> bool:
    """Whether the leading axis of a parameter is that of blocks, or of their tables."""
    in_stack = DictKey(STACK) in path and block_number(path) is None
    return in_stack or path[-1] == DictKey("relative_position")


def by_parameter(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply `rule` to each parameter by itself, and to each block of a stack.

    The state is a tree of the rule's states, one for each parameter, stacked like the parameters.
    """

    def init(params: Any) -> Any:
        def one(path: KeyPath, param: jax.Array) -> Any:
            return (jax.vmap(rule.init) if is_stacked(path) else rule.init)(param)

        return tree_map_with_path(one, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def one(path: KeyPath, *leaves: Any) -> Any:
            return (jax.vmap(rule.update) if is_stacked(path) else rule.update)(*leaves)

        pairs = tree_map_with_path(one, updates, state, params)
        changed, states = (
            jax.tree.map(lambda _, pair, i=i: pair[i], updates, pairs) for i in (0, 1)
        )
        return changed, states

    return optax.GradientTransformation(init, update)


def update_rule(
    config: Optimizer, schedule: optax.Schedule, steps: int, start: int, peak: float = 1.0
) -> optax.GradientTransformation:
    """Return the rule of `config.name` for parameters that are trained from step `start`.

    AdamW is that of PyTorch. In LARS (`lars.py` of the official MAE and MoCo v3) only matrices
    decay and have a trust ratio. In LAMB the parameters with weight decay have a trust ratio, as in
    the official code. Lion is Algorithm 2 of Chen et al. 2023, arXiv:2302.06675. docs/configs.md
    has the equations.
    """

    def selected(config: Optimizer) -> Callable[[Any], Any]:
        return lambda params: tree_map_with_path(lambda path, _: is_decayed(path, config), params)

    dtype = config.first_moment
    rate = optax.scale_by_learning_rate(lambda step: schedule(step + start))
    if config.name == "lars":
        config = dataclasses.replace(config, decay="kernels")
    decayed = selected(config)
    decay = optax.add_decayed_weights(weight_decay(config, steps, start, peak), decayed)
    if config.name == "lars":
        ratio = optax.scale_by_trust_ratio(trust_coefficient=config.trust_coefficient)
        momentum = optax.trace(config.momentum, accumulator_dtype=dtype)
        return optax.chain(decay, optax.masked(by_parameter(ratio), decayed), momentum, rate)
    if config.name == "lamb":
        moments = optax.scale_by_adam(*config.betas, eps=1e-6, mu_dtype=dtype)
        ratio = by_parameter(optax.scale_by_trust_ratio())
        return optax.chain(moments, decay, optax.masked(ratio, decayed), rate)
    if config.name == "lion":
        direction = optax.scale_by_lion(*config.betas, mu_dtype=dtype)
    elif config.name == "adafactor":
        direction = adafactor(config)
    elif config.name == "muon":
        direction = muon(config)
    else:
        direction = optax.scale_by_adam(*config.betas, mu_dtype=dtype)
    return optax.chain(direction, decay, rate)


def weight_decay(config: Optimizer, steps: int, start: int, peak: float) -> Any:
    """Return the weight decay, or its schedule, as a factor of the learning rate.

    Independent decay is lr / peak · weight_decay, so that it has the shape of the schedule only.
    """
    scale = 1 / (peak or 1) if config.independent_decay else 1
    first, end = scale * config.weight_decay, config.final_weight_decay
    if end is None:
        return first
    last = scale * end

    def at(step: jax.Array) -> jax.Array:
        done = (step + start).astype(jnp.float32) / steps
        return last + (first - last) * ((1 + jnp.cos(math.pi * done)) / 2)

    return at


def adafactor(config: Optimizer) -> optax.GradientTransformation:
    """Return Adafactor as Zhai et al. 2022, arXiv:2106.04560, use it for ViTs.

    The second moment of a matrix is the product of the moments of its rows and columns (Shazeer and
    Stern 2018, Algorithm 4), its decay rate 1 - t^-0.8 is at most the second of `betas`, the first
    moment has no bias correction, and updates are neither clipped nor scaled by the parameter
    (`scale_by_adafactor` of big_vision).
    """
    momentum, limit = config.betas

    def decay_rate(step: jax.Array, power: float) -> jax.Array:
        return jnp.minimum(limit, 1 - (step + 1).astype(jnp.float32) ** -power)

    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate_fn=decay_rate)
    first = optax.ema(momentum, debias=False, accumulator_dtype=config.first_moment)
    return optax.chain(by_parameter(factored), first)


def muon(config: Optimizer) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024) for the matrices of blocks, and Adam for other parameters.

    The projections to q, k and v are three matrices. An update is multiplied by
    0.2 · √max(rows, columns), which gives it the size of AdamW's, so that one learning rate suits
    both (Liu et al. 2025, arXiv:2502.16982).
    """

    def label(path: KeyPath, _: Any) -> str:
        if DictKey(STACK) not in path or path[-1] != DictKey("kernel"):
            return "adam"
        return "qkv" if DictKey("qkv") in path else "matrix"

    def resize(matrix: jax.Array, _: Any) -> jax.Array:
        return 0.2 * math.sqrt(max(matrix.shape)) * matrix

    dtype = config.first_moment
    orthogonal = optax.contrib.scale_by_muon(beta=config.momentum, mu_dtype=dtype)
    matrix = optax.chain(orthogonal, optax.stateless(resize))
    return optax.partition(
        {
            "matrix": by_parameter(matrix),
            "qkv": by_parameter(by_third(matrix)),
            "adam": optax.scale_by_adam(*config.betas, mu_dtype=dtype),
        },
        lambda params: tree_map_with_path(label, params),
    )


def by_third(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply `rule` to each third [n, m] of the columns of one matrix [n, 3m]."""

    def thirds(matrix: jax.Array) -> jax.Array:
        return matrix.reshape(len(matrix), 3, -1)

    def init(param: Any) -> Any:
        return jax.vmap(rule.init, in_axes=1)(thirds(param))

    def update(update: Any, state: Any, param: Any = None) -> tuple[Any, Any]:
        apply = jax.vmap(rule.update, in_axes=(1, 0, 1), out_axes=(1, 0))
        changed, state = apply(thirds(update), state, thirds(param))
        return changed.reshape(update.shape), state

    return optax.GradientTransformation(init, update)


def clipping(config: Optimizer) -> optax.GradientTransformation:
    """Clip gradients to `clip_norm` by `clip_by`.

    The norm is the global one, or that of each parameter (DINO). By `unit`, the gradient of each
    column of a matrix, and of each vector, has at most `clip_norm` times the norm of its weights,
    which counts as 1e-3 or more (Brock et al. 2021, arXiv:2102.06171, Eq. 3).
    """
    limit = config.clip_norm
    if limit is None:
        return optax.identity()
    if config.clip_by == "unit":
        return by_parameter(optax.adaptive_grad_clip(limit))
    by_norm = optax.clip_by_global_norm(limit)
    return by_norm if config.clip_by == "global" else by_parameter(by_norm)
