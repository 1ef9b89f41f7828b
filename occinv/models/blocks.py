"""Transformer blocks: pre-norm attention and MLP with drop path, stacked by a scan."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv import parallel
from occinv.rng import fold

Gelu = Literal["erf", "tanh"]
XAVIER = nn.initializers.xavier_uniform()  # what the official MAE initializes every layer with
STACK = "scan"  # the name under which the stacked parameters of blocks lie


@dataclasses.dataclass(frozen=True)
class Layout:
    """How blocks are computed, which changes nothing in what they compute.

    Attributes:
      unroll: so many blocks or fewer are written out one after the other, and keep all for their
        backward pass, which is fastest for a small model on CPU. More become a loop, which compiles
        in the time of one and keeps the products with parameters, most of the arithmetic; what is
        cheap it computes again, for less traffic and a fraction of the memory.
      remat: whether the backward pass computes whole blocks again: a third more arithmetic for the
        least memory.
      mesh: over which the train state lies (`parallel.of_state`); a block's parameters are brought
        together when it is computed, forward and backward, and never those of all. None: each
        device has them all.
    """

    unroll: int = 4
    remat: bool = False
    mesh: jax.sharding.Mesh | None = None

    def stack(self, block: Any, depth: int, in_axes: tuple[Any, ...], is_new: bool) -> Any:
        """The module class that applies `depth` of `block` (x, …) -> (x, y), each to the last x.

        Parameters are stacked along a leading axis. `in_axes` are those of what follows x;
        `is_new` while parameters are made.
        """
        is_loop = depth > self.unroll
        if self.is_sharded:
            gather = functools.partial(parallel.gathered, self.mesh)
            block = nn.map_variables(block, "params", gather, init=is_new)
        # What was brought together must not be kept: it would be that of all blocks in the end.
        if is_loop or self.is_sharded or self.remat:
            keep = None if self.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            # In a loop nothing could undo this, and the barriers against that would cost.
            block = nn.remat(block, prevent_cse=not is_loop, policy=keep)
        return nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=in_axes,
            length=depth,
            unroll=1 if is_loop else depth,
        )

    @property
    def is_sharded(self) -> bool:
        """Whether no device has all parameters."""
        return self.mesh is not None and self.mesh.shape["fsdp"] > 1

    def ready(self, tree: Any) -> Any:
        """Parameters or state for a forward pass: all but the stacks whole on every device."""
        if self.mesh is None or not self.is_sharded:
            return tree
        whole = parallel.replicated(self.mesh)

        def one(path: Any, x: jax.Array) -> jax.Array:
            in_stack = any(getattr(key, "key", None) == STACK for key in path)
            return x if in_stack else jax.lax.with_sharding_constraint(x, whole)

        return jax.tree.map_with_path(one, tree)

    def parted(self, gradient: Any) -> Any:
        """A gradient as the parameters lie."""
        if self.mesh is None or not self.is_sharded:
            return gradient
        return jax.lax.with_sharding_constraint(gradient, parallel.of_state(self.mesh, gradient))


def layer_norm(name: str, dtype: Any) -> nn.LayerNorm:
    """Layer norm with the epsilon of every official ViT; statistics are float32 in any `dtype`."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention over [B, n, D]; the softmax is float32.

    `bias`, float32 [B or 1, heads, n, n], is added to what the softmax is taken of.

    Whoever makes the collection `intermediates` mutable finds `of_class` in it, float32
    [B, heads, n]: the attention of the class token, the first of the n. It costs others nothing.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """[B, n, D] to [B, n, D]."""
        batch, count, width = x.shape
        qkv = nn.Dense(3 * width, kernel_init=XAVIER, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(batch, count, 3, self.heads, -1), 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v, bias)
        if self.is_mutable_collection("intermediates"):
            similarity = jnp.einsum("bhd,bnhd->bhn", *(x.astype(jnp.float32) for x in (q[:, 0], k)))
            similarity *= q.shape[-1] ** -0.5
            similarity = similarity if bias is None else similarity + bias[:, :, 0]
            self.sow("intermediates", "of_class", jax.nn.softmax(similarity))
        out = nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name="out")
        return out(mixed.reshape(batch, count, width))


def exact_gelu(x: jax.Array) -> jax.Array:
    """x · Φ(x) by the error function in float32, as PyTorch has it.

    `nn.gelu` takes its complement, which costs more on a CPU and differs where x is so far below
    zero that PyTorch's value is rounding.
    """
    wide = x.astype(jnp.float32)
    return (wide * (1 + jax.lax.erf(wide * math.sqrt(0.5))) / 2).astype(x.dtype)


class Mlp(nn.Module):
    """Two layers with a GELU between them, the exact one (erf) or its approximation by tanh."""

    hidden: int
    gelu: Gelu
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D]."""
        h = nn.Dense(self.hidden, kernel_init=XAVIER, dtype=self.dtype, name="in")(x)
        h = nn.gelu(h) if self.gelu == "tanh" else exact_gelu(h)
        return nn.Dense(x.shape[-1], kernel_init=XAVIER, dtype=self.dtype, name="out")(h)


class RelativePosition(NamedTuple):
    """What each pair of tokens adds to their attention, by where they lie to each other."""

    table: jax.Array  # float32 [depth, R, heads], or of one block [R, heads]
    offsets: jax.Array  # int32 [B or 1, n, n]: rows of the table


class LayerScale(nn.Module):
    """A learned factor for each channel, `start` in the beginning; None: there is none."""

    start: float | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, n, D] to itself."""
        if self.start is None:
            return x
        init = nn.initializers.constant(self.start)
        return x * self.param("scale", init, x.shape[-1:]).astype(x.dtype)


def branch_keys(
    keys: jax.Array | None, layer: jax.Array
) -> tuple[jax.Array | None, jax.Array | None]:
    """Keys [B] for the two branches of block number `layer`; None draws nothing."""
    return (None, None) if keys is None else (fold(keys, 2 * layer), fold(keys, 2 * layer + 1))


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
    """x + attention(norm(x)), then x + mlp(norm(x)). Made to be scanned over the depth.

    With `layer_scale` each of the two branches has a factor for each channel that starts at it.
    """

    heads: int
    gelu: Gelu
    dtype: Any
    layer_scale: float | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layer: jax.Array,
        rate: jax.Array,
        table: jax.Array | None,
        offsets: jax.Array | None,
        keys: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, n, D] to itself, twice: carried on, and collected as this block's features."""
        # Looked up in each block by itself: the bias of all of them would be a large array.
        bias = None if table is None else jnp.moveaxis(table[offsets], -1, 1)
        attention_keys, mlp_keys = branch_keys(keys, layer)
        branch = Attention(self.heads, self.dtype, name="attention")(
            layer_norm("norm1", self.dtype)(x), bias
        )
        branch = LayerScale(self.layer_scale, name="scale1")(branch)
        x = x + drop_path(attention_keys, branch, rate)
        branch = Mlp(4 * x.shape[-1], self.gelu, self.dtype, name="mlp")(
            layer_norm("norm2", self.dtype)(x)
        )
        branch = LayerScale(self.layer_scale, name="scale2")(branch)
        x = x + drop_path(mlp_keys, branch, rate)
        return x, x


class Blocks(nn.Module):
    """`depth` blocks. Their parameters are stacked: every leaf has a leading axis of `depth`.

    `layout` says how they are computed.
    """

    depth: int
    heads: int
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    gelu: Gelu = "erf"
    layer_scale: float | None = None
    layout: Layout = Layout()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array | None = None,
        position: RelativePosition | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """[B, n, D] to the last block's output and every block's: [B, n, D], [depth, B, n, D].

        `keys` [B] draw drop path; None is evaluation.
        """
        in_axes = (0, 0, 0, nn.broadcast, nn.broadcast)
        scanned = self.layout.stack(Block, self.depth, in_axes, self.is_initializing())
        rates = jnp.linspace(0.0, self.drop_path, self.depth)
        if not self.drop_path:
            keys = None
        stack = scanned(self.heads, self.gelu, self.dtype, self.layer_scale, name=STACK)
        table, offsets = position or (None, None)
        return stack(x, jnp.arange(self.depth), rates, table, offsets, keys)
