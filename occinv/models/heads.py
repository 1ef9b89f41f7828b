"""Heads: projectors and predictors of siamese objectives, prototypes, and the classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.losses.contrastive import unit
from occinv.models.attention import XAVIER
from occinv.models.blocks import exact_gelu, layer_norm
from occinv.models.vit import TOKEN_INIT

# PyTorch's default for linear layers: uniform within ±1 / sqrt(fan in).
TORCH_LINEAR = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
HeadNorm = Literal["none", "batchnorm", "layernorm"]


class MlpHead(nn.Module):
    """Projector or predictor of Eq. (10): two layers, between them an optional norm and a GELU.

    Batch norm is synchronized: its statistics are over every image and token of the global batch.
    Heads are dropped after pretraining, so no running statistics are kept.
    """

    hidden: int
    out: int
    norm: HeadNorm = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, T, D] to float32 [B, T, out]."""
        h = nn.Dense(self.hidden, kernel_init=XAVIER, dtype=self.dtype, name="in")(x)
        if self.norm == "layernorm":
            h = layer_norm("norm", self.dtype)(h)
        elif self.norm == "batchnorm":
            h = BatchNorm(name="norm")(h)
        h = exact_gelu(h)
        out = nn.Dense(self.out, kernel_init=XAVIER, dtype=self.dtype, name="out")
        return out(h).astype(jnp.float32)


class BatchNormHead(nn.Module):
    """Projector or predictor of MoCo v3: linear layers without biases, batch norm and ReLU.

    The last batch norm has no scale and bias (`_build_mlp` of the official `moco/builder.py`).
    """

    layers: int
    hidden: int
    out: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, D] to float32 [B, out]."""
        for layer in range(self.layers):
            is_last = layer == self.layers - 1
            width = self.out if is_last else self.hidden
            name = f"linear{layer}"
            x = nn.Dense(
                width, use_bias=False, kernel_init=TORCH_LINEAR, dtype=self.dtype, name=name
            )(x)
            x = BatchNorm(affine=not is_last, name=f"norm{layer}")(x)
            x = x if is_last else nn.relu(x)
        return x.astype(jnp.float32)


class PrototypeHead(nn.Module):
    """The head of DINO: a three-layer MLP, normalization to length 1, and prototypes.

    The last layer is weight-normalized: prototype k is scale[k] times a unit vector (`DINOHead` of
    the official `vision_transformer.py`). With `unit_prototypes` the scale gets no gradient.
    """

    hidden: int
    bottleneck: int
    prototypes: int
    unit_prototypes: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to float32 [..., prototypes]."""
        x = three_layers(x, self.hidden, self.bottleneck, self.dtype)
        return Prototypes(self.prototypes, self.unit_prototypes, name="last")(
            unit(x.astype(jnp.float32))
        )


class ProjectionHead(nn.Module):
    """The projector of MSN: a three-layer MLP with batch norm (`init_model` of msn_train.py)."""

    hidden: int
    out: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """Map [B, ..., D] to float32 [B, ..., out]; images of `weight` [B] 0 do not count."""

        def norm(x: jax.Array, layer: int) -> jax.Array:
            return BatchNorm(name=f"norm{layer}")(x, weight)

        return three_layers(x, self.hidden, self.out, self.dtype, norm).astype(jnp.float32)


def three_layers(
    x: jax.Array,
    hidden: int,
    out: int,
    dtype: Any,
    norm: Callable[[jax.Array, int], jax.Array] | None = None,
) -> jax.Array:
    """Map [..., D] to [..., out] by linear layers with GELU, in the compact method of a head.

    `norm` of a hidden layer and its index precedes each GELU. Batch norm would cancel a bias, so
    that the layer before it has none.
    """
    for layer, width in enumerate((hidden, hidden, out)):
        is_last = layer == 2
        bias, name = is_last or norm is None, f"linear{layer}"
        x = nn.Dense(width, use_bias=bias, kernel_init=TOKEN_INIT, dtype=dtype, name=name)(x)
        if not is_last:
            x = exact_gelu(x if norm is None else norm(x, layer))
    return x


class PrototypeCosines(nn.Module):
    """The cosines of vectors and trained prototypes (MSN), in float32.

    The parameter is not named `kernel`, so that weight decay does not change it.
    """

    count: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., count]."""
        prototypes = self.param("prototypes", TORCH_LINEAR, (x.shape[-1], self.count))
        return unit(x) @ unit(prototypes.T).T


class Prototypes(nn.Module):
    """A weight-normalized linear layer in float32."""

    count: int
    keep_unit: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., count]."""
        kernel = self.param("kernel", TORCH_LINEAR, (x.shape[-1], self.count))
        scale = self.param("scale", nn.initializers.ones, (self.count,))
        if self.keep_unit:
            scale = jax.lax.stop_gradient(scale)
        return x @ (kernel / jnp.linalg.norm(kernel, axis=0) * scale)


class BatchNorm(nn.Module):
    """Normalize over all axes but the last, by the statistics of the current batch."""

    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, weight: jax.Array | None = None) -> jax.Array:
        """Normalize [B, ..., D]; statistics are float32, and images count by `weight` [B], if any.

        Without weights, the first axis may have another meaning.
        """
        values = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        if weight is None:
            mean, variance = values.mean(axes), values.var(axes)
        else:
            share = (weight / weight.sum())[:, None]
            mean = (share * values.mean(axes[1:])).sum(0)
            variance = (share * jnp.square(values - mean).mean(axes[1:])).sum(0)
        values = (values - mean) * jax.lax.rsqrt(variance + 1e-5)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
            values = values * scale + bias
        return values.astype(x.dtype)


def pool(tokens: jax.Array, token: Literal["class", "mean"]) -> jax.Array:
    """Return the class token or the mean patch token of [B, 1 + n, D]: [B, D]."""
    return tokens[:, 0] if token == "class" else tokens[:, 1:].mean(1)


class ClassifierHead(nn.Module):
    """Linear classifier of the mean patch token after its own norm, or of the class token.

    As in `models_vit.py` of the official MAE, the norm of `pooling="mean"` is new in fine-tuning.
    """

    num_classes: int
    pooling: Literal["mean", "class"]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map tokens [B, 1 + N, D] to logits float32 [B, num_classes]."""
        pooled = pool(tokens, self.pooling)
        if self.pooling == "mean":
            pooled = layer_norm("norm", self.dtype)(pooled)
        # A small start: the features, not the head, decide the first steps.
        init = nn.initializers.truncated_normal(2e-5)
        # In float32: in bfloat16 logits of different classes are often equal.
        dense = nn.Dense(self.num_classes, kernel_init=init, dtype=jnp.float32, name="linear")
        return dense(pooled.astype(jnp.float32))
