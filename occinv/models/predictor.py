"""I-JEPA's predictor: from what f says of a context to what its teacher says of other patches."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.models.blocks import XAVIER, Blocks, Layout, layer_norm
from occinv.models.position import sincos
from occinv.models.vit import TOKEN_INIT


class BlockPredictor(nn.Module):
    """A narrow transformer over context tokens and, where something is to be told, mask tokens.

    Each block of patches is told by itself: mask tokens of one never see those of another
    (`VisionTransformerPredictor` of the official code).

    Attributes:
      num_patches: N, a square number.
      out: D of what it predicts.
      width, depth, heads: of its own blocks.
      dtype: of the computation.
      layout: how its blocks are computed, without effect on what they compute.
    """

    num_patches: int
    out: int
    width: int
    depth: int
    heads: int
    dtype: Any = jnp.float32
    layout: Layout = Layout()

    @nn.compact
    def __call__(self, tokens: jax.Array, shown: jax.Array, blocks: jax.Array) -> jax.Array:
        """Predicted features, float32 [B, T, R, out].

        Args:
          tokens: [B, n, D], those of the context's patches.
          shown: int32 [B, n], where these are.
          blocks: int32 [B, T, R], where the R patches of each of T blocks are.
        """
        images, count, size = blocks.shape
        position = jnp.asarray(sincos(math.isqrt(self.num_patches), self.width)[1:], self.dtype)
        embed = nn.Dense(self.width, kernel_init=XAVIER, dtype=self.dtype, name="embed")
        context = embed(tokens.astype(self.dtype)) + position[shown]
        mask_token = self.param("mask_token", TOKEN_INIT, (self.width,)).astype(self.dtype)
        missing = mask_token + position[blocks]

        context = jnp.repeat(context[:, None], count, axis=1)
        x = jnp.concatenate([context, missing], axis=2).reshape(images * count, -1, self.width)
        stack = Blocks(self.depth, self.heads, dtype=self.dtype, layout=self.layout, name="blocks")
        x = layer_norm("norm", self.dtype)(stack(x)[0][:, -size:])
        predict = nn.Dense(self.out, kernel_init=XAVIER, dtype=self.dtype, name="predict")
        return predict(x).astype(jnp.float32).reshape(images, count, size, self.out)
