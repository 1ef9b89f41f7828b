"""CAE's M: latents of removed patches from those of visible ones, and ids from these latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.models.blocks import (
    STACK,
    XAVIER,
    Blocks,
    LayerScale,
    Layout,
    Mlp,
    branch_keys,
    drop_path,
    layer_norm,
)
from occinv.models.position import sincos
from occinv.models.vit import TOKEN_INIT
from occinv.rng import fold


class Prediction(NamedTuple):
    """What is said of the R removed patches, in raster order."""

    latents: jax.Array  # float32 [B, R, D]
    logits: jax.Array  # float32 [B, R, num_ids]


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B, m, D] to keys and values [B, n, D]."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """[B, m, D]."""
        width = queries.shape[-1]

        def dense(name: str) -> nn.Dense:
            return nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name=name)

        def heads(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], self.heads, -1)

        q, k, v = (
            heads(dense(name)(x)) for name, x in (("q", queries), ("k", keys), ("v", values))
        )
        mixed = jax.nn.dot_product_attention(q, k, v)
        return dense("out")(mixed.reshape(queries.shape))


class RegressorBlock(nn.Module):
    """The latents look at the context and at each other; the context stays what it is.

    As `RegressorBlock` of modeling_cae_helper.py: positions are added to queries and keys alone,
    and what passes the second norm replaces the residual stream.
    """

    heads: int
    layer_scale: float | None
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layer: jax.Array,
        rate: jax.Array,
        context: jax.Array,
        positions: tuple[jax.Array, jax.Array],
        keys: jax.Array | None,
    ) -> tuple[jax.Array, None]:
        """Latents [B, R, D] to themselves; positions of the context and of the latents."""
        attention_keys, mlp_keys = branch_keys(keys, layer)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return layer_norm(f"norm_{name}", self.dtype)(x)

        def scaled(name: str, branch: jax.Array) -> jax.Array:
            return LayerScale(self.layer_scale, name=f"scale_{name}")(branch)

        everything = jnp.concatenate([context, x], axis=1)
        where = jnp.concatenate(positions, axis=1)
        branch = CrossAttention(self.heads, self.dtype, name="attention")(
            norm("q", x + positions[1]), norm("k", everything + where), norm("v", everything)
        )
        x = norm("mlp", x + drop_path(attention_keys, scaled("attention", branch), rate))
        branch = Mlp(4 * x.shape[-1], "erf", self.dtype, name="mlp")(x)
        return x + drop_path(mlp_keys, scaled("mlp", branch), rate), None


class ContextRegressor(nn.Module):
    """Latents of removed patches, regressed from the tokens of visible ones; then their ids.

    Attributes:
      num_patches: N, a square number.
      num_ids: of the tokenizer.
      heads: of attention, here and there.
      regressor_depth, decoder_depth: blocks of cross-attention, then of self-attention.
      drop_path, layer_scale: as in the encoder.
      dtype: of the computation.
      layout: how blocks are computed, without effect on what they compute.
    """

    num_patches: int
    num_ids: int
    heads: int
    regressor_depth: int
    decoder_depth: int
    drop_path: float = 0.0
    layer_scale: float | None = None
    dtype: Any = jnp.float32
    layout: Layout = Layout()

    @nn.compact
    def __call__(
        self,
        context: jax.Array,
        visible: jax.Array,
        removed: jax.Array,
        keys: jax.Array | None = None,
    ) -> Prediction:
        """What is said of the patches at `removed`.

        Args:
          context: [B, n, D], tokens of the visible patches, in raster order.
          visible, removed: int32 [B, n] and [B, R], where the patches are.
          keys: key array [B] for drop path; None: evaluation.
        """
        width = context.shape[-1]
        table = jnp.asarray(sincos(int(self.num_patches**0.5), width)[1:], self.dtype)
        positions = table[visible], table[removed]
        token = self.param("mask_token", TOKEN_INIT, (width,)).astype(self.dtype)
        x = jnp.broadcast_to(token, positions[1].shape)
        regressor_keys = decoder_keys = None
        if keys is not None and self.drop_path:
            regressor_keys, decoder_keys = fold(keys, 0), fold(keys, 1)
        in_axes = (0, 0, nn.broadcast, nn.broadcast, nn.broadcast)
        scanned = self.layout.stack(
            RegressorBlock, self.regressor_depth, in_axes, self.is_initializing()
        )
        rates = jnp.linspace(0.0, self.drop_path, self.regressor_depth)
        regress = scanned(self.heads, self.layer_scale, self.dtype, name=STACK)
        context = context.astype(self.dtype)
        x, _ = regress(
            x, jnp.arange(self.regressor_depth), rates, context, positions, regressor_keys
        )
        latents = layer_norm("norm", self.dtype)(x)
        x, _ = Blocks(
            self.decoder_depth,
            self.heads,
            self.drop_path,
            self.dtype,
            layer_scale=self.layer_scale,
            layout=self.layout,
            name="decoder",
        )(latents + positions[1], decoder_keys)
        x = layer_norm("decoder_norm", self.dtype)(x)
        head = nn.Dense(self.num_ids, kernel_init=TOKEN_INIT, dtype=self.dtype, name="head")
        return Prediction(latents.astype(jnp.float32), head(x).astype(jnp.float32))
