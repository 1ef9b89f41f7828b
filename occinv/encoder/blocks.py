"""Transformer blocks: pre-norm attention and MLP with drop path, stacked by a scan."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.transform.keys import fold

Gelu = Literal["erf", "tanh"]
XAVIER = nn.initializers.xavier_uniform()  # what the official MAE initialises every layer with


def layer_norm(name: str, dtype: Any) -> nn.LayerNorm:
    """Layer norm with the epsilon of every official ViT; statistics are float32 in any `dtype`."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention over [B, n, D]; the softmax is float32.

    Whoever makes the collection `intermediates` mutable finds `of_class` in it, float32
    [B, heads, n]: the attention of the class token, the first of the n. It costs others nothing.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, n, D] to [B, n, D]."""
        batch, count, width = x.shape
        qkv = nn.Dense(3 * width, kernel_init=XAVIER, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, count, 3, self.heads, -1), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v)
        if self.is_mutable_collection("intermediates"):
            similarity = jnp.einsum("bhd,bnhd->bhn", *(x.astype(jnp.float32) for x in (q[:, 0], k)))
            self.sow("intermediates", "of_class", jax.nn.softmax(similarity * q.shape[-1] ** -0.5))
        out = nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name="out")
        return out(mixed.reshape(batch, count, width))


class Mlp(nn.Module):
    """Two layers with a GELU between them, the exact one (erf) or its approximation by tanh."""

    hidden: int
    gelu: Gelu
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D]."""
        h = nn.Dense(self.hidden, kernel_init=XAVIER, dtype=self.dtype, name="in")(x)
        h = nn.gelu(h, approximate=self.gelu == "tanh")
        return nn.Dense(x.shape[-1], kernel_init=XAVIER, dtype=self.dtype, name="out")(h)


def drop_path(keys: jax.Array | None, branch: jax.Array, rate: jax.Array) -> jax.Array:
    """Drops the whole residual `branch` [B, n, D] of an image with probability `rate` [].

    What survives is divided by 1 - rate. Each image draws with its own key [B]; None drops nothing.
    """
    if keys is None:
        return branch
    survives = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    factor = jnp.where(survives, 1 / (1 - rate), 0.0)
    return branch * factor.astype(branch.dtype)[:, None, None]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Made to be scanned over the depth."""

    heads: int
    gelu: Gelu
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, layer: jax.Array, rate: jax.Array, keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """[B, n, D] to itself, twice: carried on, and collected as this block's features."""
        attention_keys = mlp_keys = None
        if keys is not None:
            attention_keys, mlp_keys = fold(keys, 2 * layer), fold(keys, 2 * layer + 1)
        branch = Attention(self.heads, self.dtype, name="attention")(
            layer_norm("norm1", self.dtype)(x)
        )
        x = x + drop_path(attention_keys, branch, rate)
        branch = Mlp(4 * x.shape[-1], self.gelu, self.dtype, name="mlp")(
            layer_norm("norm2", self.dtype)(x)
        )
        x = x + drop_path(mlp_keys, branch, rate)
        return x, x


class Blocks(nn.Module):
    """`depth` blocks. Their parameters are stacked: every leaf has a leading axis of `depth`.

    Up to `unroll` blocks are written out one after the other; more become a loop, which compiles
    in the time of one.
    """

    depth: int
    heads: int
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    unroll: int = 4
    gelu: Gelu = "erf"

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """[B, n, D] to the last block's output and every block's: [B, n, D], [depth, B, n, D].

        `keys` [B] draw drop path; None is evaluation.
        """
        scanned = nn.scan(
            Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            length=self.depth,
            # A loop costs XLA on CPU up to a quarter of a small model's step; a deep one needs it.
            unroll=self.depth if self.depth <= self.unroll else 1,
        )
        rates = jnp.linspace(0.0, self.drop_path, self.depth)
        if not self.drop_path:
            keys = None
        stack = scanned(self.heads, self.gelu, self.dtype, name="scan")
        return stack(x, jnp.arange(self.depth), rates, keys)
