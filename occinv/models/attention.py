"""Multi-head attention: of tokens to themselves, and of queries to other tokens."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

XAVIER = nn.initializers.xavier_uniform()  # the official MAE initializes every layer with it


class Attention(nn.Module):
    """Multi-head self-attention over [B, n, D]. The softmax is computed in float32.

    If the collection `intermediates` is mutable, the attention of the class token (the first of the
    n) is stored there as `of_class`, float32 [B, heads, n]. Otherwise it is not computed.

    Attributes:
      heads: The number of heads.
      dtype: The dtype of the computation.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Map [B, n, D] to [B, n, D].

        Args:
          x: Tokens.
          bias: float32 [B or 1, heads, n, n], added to the logits of the softmax.
        """
        batch, count, width = x.shape
        qkv = nn.Dense(3 * width, kernel_init=XAVIER, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, count, 3, self.heads, -1), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v, bias)
        if self.is_mutable_collection("intermediates"):
            logits = jnp.einsum("bhd,bnhd->bhn", *(x.astype(jnp.float32) for x in (q[:, 0], k)))
            logits *= q.shape[-1] ** -0.5
            logits = logits if bias is None else logits + bias[:, :, 0]
            self.sow("intermediates", "of_class", jax.nn.softmax(logits))
        out = nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name="out")
        return out(mixed.reshape(batch, count, width))


class CrossAttention(nn.Module):
    """Multi-head attention of queries [B, m, D] to keys and values [B, n, D].

    Attributes:
      heads: The number of heads.
      dtype: The dtype of the computation.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        """Map queries [B, m, D] to [B, m, D]."""
        width = queries.shape[-1]

        def project(name: str, x: jax.Array) -> jax.Array:
            return nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name=name)(x)

        q, k, v = (
            project(name, x).reshape(*x.shape[:2], self.heads, -1)
            for name, x in (("q", queries), ("k", keys), ("v", values))
        )
        mixed = jax.nn.dot_product_attention(q, k, v)
        return project("out", mixed.reshape(queries.shape))
