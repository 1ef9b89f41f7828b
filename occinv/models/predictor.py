"""I-JEPA's predictor: from context tokens to the teacher's features of target rectangles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.models.attention import XAVIER
from occinv.models.blocks import Blocks, Layout, layer_norm
from occinv.models.position import sincos
from occinv.models.vit import TOKEN_INIT
from occinv.size import Grid


class Predictor(nn.Module):
    """A narrow transformer over context tokens and a mask token for each patch to predict.

    Each target rectangle is predicted by itself: mask tokens of one target never attend to another
    target's (`VisionTransformerPredictor` of the official code).

    Attributes:
      grid: Rows and columns of the N patches.
      out: D of the predicted features.
      width, depth, heads: The size of its own blocks.
      dtype: The dtype of the computation.
      layout: How the blocks are executed.
    """

    grid: Grid
    out: int
    width: int
    depth: int
    heads: int
    dtype: Any = jnp.float32
    layout: Layout = Layout()

    @nn.compact
    def __call__(self, tokens: jax.Array, context_ids: jax.Array, targets: jax.Array) -> jax.Array:
        """Predict features, float32 [B, T, R, out].

        Args:
          tokens: [B, n, D], the encoder's tokens of the context patches.
          context_ids: int32 [B, n], their positions.
          targets: int32 [B, T, R], the positions of the R patches of each of T targets.
        """
        images, count, size = targets.shape
        position = jnp.asarray(sincos(self.grid, self.width)[1:], self.dtype)
        embed = nn.Dense(self.width, kernel_init=XAVIER, dtype=self.dtype, name="embed")
        context = embed(tokens.astype(self.dtype)) + position[context_ids]
        mask_token = self.param("mask_token", TOKEN_INIT, (self.width,)).astype(self.dtype)
        missing = mask_token + position[targets]

        context = jnp.repeat(context[:, None], count, axis=1)
        x = jnp.concatenate([context, missing], axis=2).reshape(images * count, -1, self.width)
        stack = Blocks(self.depth, self.heads, dtype=self.dtype, layout=self.layout, name="blocks")
        x = layer_norm("norm", self.dtype)(stack(x)[0][:, -size:])
        predict = nn.Dense(self.out, kernel_init=XAVIER, dtype=self.dtype, name="predict")
        return predict(x).astype(jnp.float32).reshape(images, count, size, self.out)
