"""d: the light transformer that decodes tokens into pixels (the decoder of models_mae.py)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.models.attention import XAVIER
from occinv.models.blocks import Blocks, Layout, layer_norm
from occinv.models.position import sincos
from occinv.models.vit import TOKEN_INIT, ViT
from occinv.size import Grid


class Decoder(nn.Module):
    """Decode the tokens of visible patches into the pixels of all patches.

    Attributes:
      grid: Rows and columns of the N patches.
      patch_values: P, the values of one patch.
      width, depth, heads: The size of the decoder's own blocks.
      dtype: The dtype of the computation.
      layout: How the blocks are executed.
    """

    grid: Grid
    patch_values: int
    width: int
    depth: int
    heads: int
    dtype: Any = jnp.float32
    layout: Layout = Layout()

    @nn.compact
    def __call__(self, tokens: jax.Array, visible: jax.Array) -> jax.Array:
        """Predict patches, float32 [B, N, P].

        Args:
          tokens: [B, 1 + n, D], the class token, then the n visible patches in raster order.
          visible: bool [B, N] with n True in each row.
        """
        embed = nn.Dense(self.width, kernel_init=XAVIER, dtype=self.dtype, name="embed")
        x = embed(tokens.astype(self.dtype))
        mask_token = self.param("mask_token", TOKEN_INIT, (self.width,)).astype(self.dtype)
        position = self.param("position", lambda _: jnp.asarray(sincos(self.grid, self.width)))
        position = jax.lax.stop_gradient(position).astype(self.dtype)

        patches = restore(x[:, 1:], visible, mask_token)
        x = jnp.concatenate([x[:, :1], patches], axis=1) + position
        blocks = Blocks(self.depth, self.heads, dtype=self.dtype, layout=self.layout, name="blocks")
        x, _ = blocks(x)
        x = layer_norm("norm", self.dtype)(x)
        predict = nn.Dense(self.patch_values, kernel_init=XAVIER, dtype=self.dtype, name="predict")
        return predict(x)[:, 1:].astype(jnp.float32)


def decoder_of(encoder: ViT, width: int, depth: int, heads: int, dtype: Any) -> Decoder:
    """Return a decoder for the patches of `encoder`, executed in the same way."""
    return Decoder(
        grid=encoder.grid,
        patch_values=encoder.patch_values,
        width=width,
        depth=depth,
        heads=heads,
        dtype=dtype,
        layout=encoder.layout,
    )


def restore(tokens: jax.Array, visible: jax.Array, missing: jax.Array) -> jax.Array:
    """Put the n visible tokens [B, n, D] at their positions in [B, N, D], `missing` elsewhere."""
    place = jnp.cumsum(visible, axis=1) - 1  # of a visible patch among the visible ones
    place = jnp.clip(place, 0, tokens.shape[1] - 1)
    spread = jnp.take_along_axis(tokens, place[..., None], axis=1)
    return jnp.where(visible[..., None], spread, missing)
