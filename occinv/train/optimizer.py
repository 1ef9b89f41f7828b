"""AdamW with the official parameter groups, warm-up, cosine and layer-wise decay."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import DictKey, KeyPath

from occinv.schema import Optimizer

TOKENS = ("class_token", "mask_token")


def learning_rate(config: Optimizer, batch_size: int, warmup: int, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a half cosine to `min_lr` (`lr_sched.py` of the official MAE).

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
    """Whether weight decay acts on a parameter: on matrices, and on tokens if the config says so.

    Norms, biases and position embeddings never decay. Class and mask tokens do in the official
    pretraining and do not in fine-tuning (`no_weight_decay` of models_vit.py).
    """
    name = path[-1].key if isinstance(path[-1], DictKey) else ""
    return name == "kernel" or (config.decay_tokens and name in TOKENS)


def layer_scales(params: Any, layer_decay: float) -> Any:
    """For each parameter the factor on its learning rate, shaped to broadcast over it.

    layer_decay ** (layers above): 1 for heads and the last norm, one power more for each block
    further down, the most for the embedding (`lr_decay.py` of the official MAE).
    """
    blocks = params["encoder"]["blocks"]
    depth = jax.tree.leaves(blocks)[0].shape[0]

    def scale(path: KeyPath, value: jax.Array) -> jax.Array:
        keys = [key.key for key in path if isinstance(key, DictKey)]
        if keys[0] != "encoder" or keys[1] == "norm":
            return jnp.ones(())
        if keys[1] == "blocks":
            above = depth - jnp.arange(depth, dtype=jnp.float32)
            return (layer_decay**above).reshape(depth, *[1] * (value.ndim - 1))
        return jnp.asarray(layer_decay ** (depth + 1.0))

    return jax.tree_util.tree_map_with_path(scale, params)


def make_optimizer(config: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW as PyTorch has it: decay is decoupled and shares the (layer's) learning rate."""

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(path, config), params)

    def by_layer(updates: Any, params: Any) -> Any:
        return jax.tree.map(jnp.multiply, updates, layer_scales(params, config.layer_decay))

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(*config.betas),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.stateless(by_layer) if config.layer_decay != 1 else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )
