"""CAE's regressor and decoder: latents of removed patches from visible ones, then their ids."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.models.attention import XAVIER, CrossAttention
from occinv.models.blocks import (
    Blocks,
    LayerScale,
    Layout,
    Mlp,
    apply_blocks,
    branch_rngs,
    drop_path,
    layer_norm,
)
from occinv.models.position import sincos
from occinv.models.vit import BEIT_INIT
from occinv.rng import fold
from occinv.size import Grid


class Prediction(NamedTuple):
    """Predictions for the R removed patches, in raster order.

    Attributes:
      latents: float32 [B, R, D].
      logits: float32 [B, R, num_ids].
    """

    latents: jax.Array
    logits: jax.Array


class RegressorBlock(nn.Module):
    """The latents attend to the context and to each other; the context stays as it is.

    As in `RegressorBlock` of modeling_cae_helper.py, positions are added to queries and keys alone,
    and the output of the second norm replaces the residual stream.
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
        rng: jax.Array | None,
    ) -> tuple[jax.Array, None]:
        """Map latents [B, R, D] to themselves, given positions of the context and the latents."""
        attention_rng, mlp_rng = branch_rngs(rng, layer)

        def norm(name: str, x: jax.Array) -> jax.Array:
            return layer_norm(f"norm_{name}", self.dtype)(x)

        def scaled(name: str, branch: jax.Array) -> jax.Array:
            return LayerScale(self.layer_scale, name=f"scale_{name}")(branch)

        everything = jnp.concatenate([context, x], axis=1)
        where = jnp.concatenate(positions, axis=1)
        branch = CrossAttention(self.heads, self.dtype, name="attention")(
            norm("q", x + positions[1]), norm("k", everything + where), norm("v", everything)
        )
        x = norm("mlp", x + drop_path(attention_rng, scaled("attention", branch), rate))
        branch = Mlp(4 * x.shape[-1], "erf", self.dtype, name="mlp")(x)
        return x + drop_path(mlp_rng, scaled("mlp", branch), rate), None


class Regressor(nn.Module):
    """Regress latents of removed patches from the tokens of visible ones, then decode their ids.

    Attributes:
      grid: Rows and columns of the N patches.
      num_ids: The number of the tokenizer's ids.
      heads: The attention heads of both parts.
      regressor_depth, decoder_depth: Blocks of cross-attention, then blocks of self-attention.
      drop_path, layer_scale: As in the encoder.
      dtype: The dtype of the computation.
      layout: How the blocks are executed.
    """

    grid: Grid
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
        rng: jax.Array | None = None,
    ) -> Prediction:
        """Predict latents and ids of the patches at `removed`.

        Args:
          context: [B, n, D], tokens of the visible patches, in raster order.
          visible, removed: int32 [B, n] and [B, R], positions of patches.
          rng: key array [B] for drop path; None: no drop path.
        """
        width = context.shape[-1]
        table = jnp.asarray(sincos(self.grid, width)[1:], self.dtype)
        positions = table[visible], table[removed]
        token = self.param("mask_token", BEIT_INIT, (width,)).astype(self.dtype)
        x = jnp.broadcast_to(token, positions[1].shape)
        regressor_rng = decoder_rng = None
        if rng is not None and self.drop_path:
            regressor_rng, decoder_rng = fold(rng, 0), fold(rng, 1)
        rates = jnp.linspace(0.0, self.drop_path, self.regressor_depth)
        block = functools.partial(RegressorBlock, self.heads, self.layer_scale, self.dtype)
        rows = jnp.arange(self.regressor_depth), rates
        others = context.astype(self.dtype), positions, regressor_rng
        x, _ = apply_blocks(self, block, self.layout, x, rows, others)
        latents = layer_norm("norm", self.dtype)(x)
        x, _ = Blocks(
            self.decoder_depth,
            self.heads,
            self.drop_path,
            self.dtype,
            layer_scale=self.layer_scale,
            layout=self.layout,
            name="decoder",
        )(latents + positions[1], decoder_rng)
        x = layer_norm("decoder_norm", self.dtype)(x)
        head = nn.Dense(self.num_ids, kernel_init=XAVIER, dtype=self.dtype, name="head")
        return Prediction(latents.astype(jnp.float32), head(x).astype(jnp.float32))
