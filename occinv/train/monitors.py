"""Measurements of training on request (`train.monitors`), logged beside the loss.

Without them the compiled step is the same program.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
from jax.tree_util import DictKey

from occinv import parallel
from occinv.data.batch import Batch
from occinv.models.blocks import join_blocks
from occinv.models.class_attention import class_attention
from occinv.models.heads import pool
from occinv.models.vit import ViT
from occinv.objectives.base import Objective
from occinv.schema import Train
from occinv.train.accumulation import join_parts, split_batch
from occinv.train.update_rules import block_number
from occinv.transforms.view import unit_range


def layer_norms(prefix: str, tree: Any) -> dict[str, jax.Array]:
    """Return the norm of each block, and of the parts of every network outside of blocks.

    Returns:
      float32 [] by name, such as `prefix/encoder/blocks/3` and `prefix/decoder/embed`.
    """
    layers: dict[str, list[jax.Array]] = {}
    for path, x in jax.tree.leaves_with_path(tree):
        names = [key.key for key in path if isinstance(key, DictKey)]
        rows = {"/".join(names[:2]): x}
        if parallel.STACK in names:
            stack, number = "/".join(names[: names.index(parallel.STACK)]), block_number(path)
            blocks = enumerate(x) if number is None else [(number, x)]
            rows = {f"{stack}/{i}": block for i, block in blocks}
        for name, row in rows.items():
            layers.setdefault(f"{prefix}/{name}", []).append(row)
    return {name: optax.tree.norm(arrays) for name, arrays in layers.items()}


def gradient_noise(
    part: jax.Array, whole: jax.Array, batch_size: int, parts: int
) -> dict[str, jax.Array]:
    """Estimate |G|² and tr Σ, of which the noise scale is the ratio.

    They are unbiased (McCandlish et al. 2018, arXiv:1812.06162, Appendix A.1), but vary much, so
    that each is averaged over steps before the ratio.

    Args:
      part: float32 [], the mean squared norm of the gradients of the parts.
      whole: float32 [], the squared norm of the gradient of the batch.
      batch_size: Images of the batch.
      parts: The number of parts.
    """
    small = batch_size / parts
    return {
        "gradient_signal": (batch_size * whole - small * part) / (batch_size - small),
        "gradient_noise": (part - whole) / (1 / small - 1 / batch_size),
    }


def at_log(
    train: Train, means: dict[str, float], objective: Objective, params: Any, batch: Batch
) -> dict[str, float]:
    """Return the monitors that are measured only when metrics are logged.

    They are the noise scale of the logged means, in images, the rank of the features, and the
    entropy of the attention.
    """
    found = {}
    if "noise_scale" in train.monitors:
        signal, noise = means["gradient_signal"], means["gradient_noise"]
        found["noise_scale"] = noise / signal if signal > 0 else float("inf")
    if "rank" in train.monitors:
        found |= feature_rank(objective, params, batch, train.accumulate)
    if "attention" in train.monitors:
        found |= attention_entropy(objective, params, batch, train.accumulate)
    return found


def feature_rank(objective: Objective, params: Any, batch: Batch, parts: int) -> dict[str, float]:
    """Return RankMe and the mean variance of the features of the images of a batch.

    RankMe is the exponential of the entropy of the singular values (Garrido et al. 2023,
    arXiv:2210.02885). It is at most the number of images or channels.

    Args:
      objective: It has the encoder, which sees whole images, and the token that describes them.
      params: The parameters.
      batch: The global batch.
      parts: The number of parts in which the features are computed.
    """
    encoder, mesh = objective.networks.encoder, objective.setting.mesh
    features = _features(encoder, objective.axes.token, params["encoder"], batch.image, parts, mesh)
    features = np.float64(parallel.fetch(features))
    singular = np.linalg.svd(features, compute_uv=False)
    share = singular / singular.sum() + 1e-7
    rank = np.exp(-(share * np.log(share)).sum())
    return {"feature_rank": float(rank), "feature_variance": float(features.var(0).mean())}


@functools.partial(jax.jit, static_argnames=("encoder", "token", "parts", "mesh"))
def _features(
    encoder: ViT, token: Any, params: Any, image: jax.Array, parts: int, mesh: Any
) -> jax.Array:
    """Return float32 [B, D] on every device."""
    params = parallel.gather(mesh, params)

    def features(part: jax.Array) -> jax.Array:
        found: Any = encoder.apply({"params": params}, unit_range(part))
        return pool(found.tokens, token)

    every = join_parts(jax.lax.map(features, split_batch(image, parts)))
    return jax.lax.with_sharding_constraint(every, parallel.replicated(mesh))


def attention_entropy(
    objective: Objective, params: Any, batch: Batch, parts: int
) -> dict[str, float]:
    """Return the entropy of the class token's attention to the patches, for each block.

    It is the mean over images and heads, as a share of that of equal attention: 1 where every patch
    gets the same, 0 where one patch gets all. Zhai et al. 2023, arXiv:2303.06296, find that it
    falls before training becomes unstable.

    Args:
      objective, params, batch, parts: As in `feature_rank`.

    Raises:
      UserError: The encoder has no class token.
    """
    encoder, mesh = objective.networks.encoder, objective.setting.mesh
    entropy = _entropy(encoder, params["encoder"], batch.image, parts, mesh)
    values = parallel.fetch(entropy).tolist()
    return {f"attention_entropy/encoder/blocks/{i}": value for i, value in enumerate(values)}


@functools.partial(jax.jit, static_argnames=("encoder", "parts", "mesh"))
def _entropy(encoder: ViT, params: Any, image: jax.Array, parts: int, mesh: Any) -> jax.Array:
    """Return float32 [depth] on every device."""
    params = join_blocks(parallel.gather(mesh, params))

    def entropy(part: jax.Array) -> jax.Array:
        weights = class_attention(encoder, params, unit_range(part))
        share = weights / weights.sum(-1, keepdims=True)
        return jax.scipy.special.entr(share).sum(-1).mean((1, 2))

    means = jax.lax.map(entropy, split_batch(image, parts)).mean(0) / np.log(encoder.num_patches)
    return jax.lax.with_sharding_constraint(means, parallel.replicated(mesh))
