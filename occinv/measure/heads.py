"""Heads: the projector and predictor of siamese measures, and the classifier."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.encoder.blocks import XAVIER, layer_norm

HeadNorm = Literal["none", "batchnorm", "layernorm"]


class MlpHead(nn.Module):
    """p or q of Eq. (10): two layers with an optional normalisation and a GELU between them.

    Batch norm takes its statistics over every image and token of the global batch, so it is what
    other code calls synchronised; heads are dropped after pretraining, so none are kept.
    """

    hidden: int
    out: int
    norm: HeadNorm = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] to float32 [B, T, out]."""
        h = nn.Dense(self.hidden, kernel_init=XAVIER, dtype=self.dtype, name="in")(x)
        if self.norm == "layernorm":
            h = layer_norm("norm", self.dtype)(h)
        elif self.norm == "batchnorm":
            h = BatchNorm(name="norm")(h)
        h = nn.gelu(h, approximate=False)
        out = nn.Dense(self.out, kernel_init=XAVIER, dtype=self.dtype, name="out")
        return out(h).astype(jnp.float32)


class BatchNorm(nn.Module):
    """Normalisation over all axes but the last, by the statistics of this very batch."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to itself; statistics are float32."""
        values = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        mean, variance = values.mean(axes), values.var(axes)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return ((values - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias).astype(x.dtype)


class ClassifierHead(nn.Module):
    """Linear classifier of the mean patch token, through a norm of its own, or of the class token.

    `models_vit.py` of the official MAE: with `pooling="mean"` the norm is new, so that fine-tuning
    starts from a fresh one.
    """

    num_classes: int
    pooling: Literal["mean", "class"]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, 1 + N, D] to logits float32 [B, num_classes]."""
        if self.pooling == "mean":
            pooled = layer_norm("norm", self.dtype)(tokens[:, 1:].mean(1))
        else:
            pooled = tokens[:, 0]
        # So small a start lets the features, not the head, decide the first steps.
        init = nn.initializers.truncated_normal(2e-5)
        dense = nn.Dense(self.num_classes, kernel_init=init, dtype=self.dtype, name="linear")
        return dense(pooled).astype(jnp.float32)
