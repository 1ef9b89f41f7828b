"""Transformer blocks: pre-norm attention and MLP with drop path, stacked by a scan."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import DictKey, KeyPath

from occinv import parallel, schema
from occinv.models.attention import SAVED, XAVIER, Attention
from occinv.rng import fold

Gelu = Literal["erf", "tanh"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The execution of a stack of blocks. It does not change the result.

    Attributes:
      unroll: Stacks of at most this depth are unrolled and store every activation, which is fastest
        for a small model on CPU. Deeper stacks become a loop, which compiles in the time of one
        block. The loop stores the outputs of matmuls with weights and recomputes the rest: less
        memory traffic and a fraction of the memory.
      remat: Recompute whole blocks in the backward pass: a third more compute, least memory.
      attention: The backend of `attention.attend`.
      mesh: The devices; None: one device. If the train state is sharded over them
        (`parallel.of_state`), a block gathers its own parameters when it is computed, forward and
        backward, so that no device ever holds the parameters of all blocks.
    """

    unroll: int = 4
    remat: bool = False
    attention: schema.Attention = "xla"
    mesh: jax.sharding.Mesh | None = None

    def stack(self, block: Any, depth: int, in_axes: tuple[Any, ...], is_initializing: bool) -> Any:
        """Return the module class that applies `depth` blocks (x, …) -> (x, y) in sequence.

        Parameters are stacked along a leading axis. `in_axes` are the scan axes of the arguments
        after x.
        """
        is_loop = depth > self.unroll
        is_sharded = parallel.is_sharded(self.mesh)
        if is_sharded:
            gather = functools.partial(parallel.gather_block, self.mesh)
            block = nn.map_variables(block, "params", gather, init=is_initializing)
        # Do not store gathered parameters for the backward pass: they would all stay in memory.
        if is_loop or is_sharded or self.remat:
            policies = jax.checkpoint_policies
            policy = (
                None
                if self.remat
                else policies.save_from_both_policies(
                    policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(SAVED)
                )
            )
            # Inside a loop the barriers against CSE are slow and not needed.
            block = nn.remat(block, prevent_cse=not is_loop, policy=policy)
        return nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=in_axes,
            length=depth,
            unroll=1 if is_loop else depth,
        )


def apply_blocks(
    parent: nn.Module,
    block: functools.partial[Any],
    layout: Layout,
    x: jax.Array,
    rows: tuple[Any, ...],
    others: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    """Apply blocks (x, *rows[i], *others) -> (x, y) in sequence; return x and the stacked y.

    Args:
      parent: The module that the parameters belong to, under the name `parallel.STACK`: stacked,
        or split by `split_blocks`.
      block: A class of modules with its arguments bound.
      layout: How the blocks are executed.
      x: Tokens.
      rows: Arrays, or None, with one row for each block.
      others: Arguments that all blocks share.
    """
    params = None if parent.is_initializing() else parent.get_variable("params", parallel.STACK)
    if isinstance(params, tuple):
        one = block(parent=None, name=parallel.STACK)
        apply = jax.checkpoint(one.apply) if layout.remat else one.apply
        features = []
        for number, own in enumerate(params):
            row = jax.tree.map(operator.itemgetter(number), rows)
            x, y = apply({"params": own}, x, *row, *others)
            features.append(y)
        return x, stack_trees(features)
    in_axes = (0,) * len(rows) + (nn.broadcast,) * len(others)
    scanned = layout.stack(block.func, len(rows[0]), in_axes, parent.is_initializing())
    return scanned(*block.args, name=parallel.STACK)(x, *rows, *others)


def split_blocks(tree: Any) -> Any:
    """Return `tree` with every stack of parameters as a tuple, with one entry for each block.

    XLA's CPU compiler copies a block's parameters out of a stack and adds its gradient to a stack
    of zeros, so the train step is faster on CPU if every block has its own arrays.
    """

    def split(node: Any) -> Any:
        if not is_stack(node):
            return node
        leaves, structure = jax.tree.flatten(node[parallel.STACK])
        rows = zip(*map(rows_of, leaves), strict=True)
        blocks = tuple(jax.tree.unflatten(structure, row) for row in rows)
        return {**split_blocks(without_stack(node)), parallel.STACK: blocks}

    return jax.tree.map(split, tree, is_leaf=is_stack)


rows_of = jax.jit(tuple)  # compiled for each shape, which is faster than one program for all


def fill_blocks(like: Any, tree: Any) -> Any:
    """Return the arrays of `tree`, which has stacks, in the structure of `like`, which has none."""
    found = dict(jax.tree.leaves_with_path(tree))
    rows: dict[KeyPath, tuple[jax.Array, ...]] = {}

    def leaf(path: KeyPath, _: Any) -> Any:
        if path in found:
            return found[path]
        place = 1 + path.index(DictKey(parallel.STACK))
        whole = path[:place] + path[place + 1 :]
        if whole not in rows:
            rows[whole] = rows_of(found[whole])
        number: Any = path[place]
        return rows[whole][number.idx]

    return jax.tree.map_with_path(leaf, like)


def join_blocks(tree: Any) -> Any:
    """Invert `split_blocks`; a stack stays as it is."""

    def join(node: Any) -> Any:
        if not is_stack(node) or not isinstance(node[parallel.STACK], tuple):
            return node
        return {
            **join_blocks(without_stack(node)),
            parallel.STACK: stack_trees(node[parallel.STACK]),
        }

    return jax.tree.map(join, tree, is_leaf=is_stack)


def is_stack(node: Any) -> bool:
    """Whether a node of a tree of parameters is the parent of a stack of blocks."""
    return isinstance(node, Mapping) and parallel.STACK in node


def without_stack(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the other children of a parent of a stack."""
    return {name: child for name, child in node.items() if name != parallel.STACK}


def stack_trees(trees: Sequence[Any]) -> Any:
    """Stack the arrays of equal trees along a new leading axis."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def layer_norm(name: str, dtype: Any) -> nn.LayerNorm:
    """Return a layer norm with the epsilon of every official ViT; statistics are float32."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


def exact_gelu(x: jax.Array) -> jax.Array:
    """Return x · Φ(x) by the error function in float32, as PyTorch does.

    `nn.gelu` uses the complementary error function. It is slower on CPU, and it differs from
    PyTorch's for very negative x.
    """
    wide = x.astype(jnp.float32)
    return (wide * (1 + jax.lax.erf(wide * math.sqrt(0.5))) / 2).astype(x.dtype)


class Mlp(nn.Module):
    """Two layers with a GELU between them, exact (erf) or approximate (tanh)."""

    hidden: int
    gelu: Gelu
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., D] to [..., D]."""
        h = nn.Dense(self.hidden, kernel_init=XAVIER, dtype=self.dtype, name="in")(x)
        h = nn.gelu(h) if self.gelu == "tanh" else exact_gelu(h)
        return nn.Dense(x.shape[-1], kernel_init=XAVIER, dtype=self.dtype, name="out")(h)


class RelativePosition(NamedTuple):
    """The bias that each pair of tokens adds to its attention, by relative position.

    Attributes:
      table: float32 [depth, R, heads].
      offsets: int32 [B or 1, n, n], rows of the table.
    """

    table: jax.Array
    offsets: jax.Array


class LayerScale(nn.Module):
    """A learned factor for each channel, which starts at `start`. None: the identity."""

    start: float | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scale [B, n, D]."""
        if self.start is None:
            return x
        init = nn.initializers.constant(self.start)
        return x * self.param("scale", init, x.shape[-1:]).astype(x.dtype)


def branch_rngs(
    rng: jax.Array | None, layer: jax.Array
) -> tuple[jax.Array | None, jax.Array | None]:
    """Return key arrays [B] for the two branches of block number `layer`; None for None."""
    return (None, None) if rng is None else (fold(rng, 2 * layer), fold(rng, 2 * layer + 1))


def drop_path(rng: jax.Array | None, branch: jax.Array, rate: jax.Array) -> jax.Array:
    """Drop the whole residual `branch` [B, n, D] of an image with probability `rate` [].

    Kept branches are divided by 1 - rate. Each image draws by its own key of [B]; None drops none.
    """
    if rng is None:
        return branch
    survives = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(rng)
    factor = jnp.where(survives, 1 / (1 - rate), 0.0)
    return branch * factor.astype(branch.dtype)[:, None, None]


class Block(nn.Module):
    """A transformer block: x + attention(norm(x)), then x + mlp(norm(x)); scanned over the depth.

    Attributes:
      heads: The number of attention heads.
      gelu: See `Mlp`.
      dtype: The dtype of the computation.
      layer_scale: The initial value of LayerScale; None: no LayerScale.
      layout: Its backend of attention is used.
    """

    heads: int
    gelu: Gelu
    dtype: Any
    layer_scale: float | None = None
    layout: Layout = Layout()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layer: jax.Array,
        rate: jax.Array,
        table: jax.Array | None,
        offsets: jax.Array | None,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Map [B, n, D] to [B, n, D], returned twice: as carry and as this block's features."""
        # Each block looks up its own bias: the bias of all blocks would be a large array.
        bias = None if table is None else jnp.moveaxis(table[offsets], -1, 1)
        attention_rng, mlp_rng = branch_rngs(rng, layer)
        how = self.layout.attention, self.layout.mesh
        branch = Attention(self.heads, self.dtype, *how, name="attention")(
            layer_norm("norm1", self.dtype)(x), bias
        )
        branch = LayerScale(self.layer_scale, name="scale1")(branch)
        x = x + drop_path(attention_rng, branch, rate)
        branch = Mlp(4 * x.shape[-1], self.gelu, self.dtype, name="mlp")(
            layer_norm("norm2", self.dtype)(x)
        )
        branch = LayerScale(self.layer_scale, name="scale2")(branch)
        x = x + drop_path(mlp_rng, branch, rate)
        return x, x


class Blocks(nn.Module):
    """A stack of `depth` blocks. Every parameter has a leading axis of `depth`.

    Attributes:
      depth, heads: The numbers of blocks and attention heads.
      drop_path: The rate at the last block; it grows linearly from 0 at the first.
      dtype: The dtype of the computation.
      gelu, layer_scale: See `Block`.
      layout: How the stack is executed.
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
        rng: jax.Array | None = None,
        position: RelativePosition | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Map [B, n, D] to the last block's output [B, n, D] and every block's [depth, B, n, D].

        Args:
          x: Tokens.
          rng: key array [B] for drop path; None: no drop path.
          position: The relative position bias.
        """
        rates = jnp.linspace(0.0, self.drop_path, self.depth)
        if not self.drop_path:
            rng = None
        table, offsets = position or (None, None)
        settings = self.heads, self.gelu, self.dtype, self.layer_scale, self.layout
        block = functools.partial(Block, *settings)
        rows = jnp.arange(self.depth), rates, table
        return apply_blocks(self, block, self.layout, x, rows, (offsets, rng))
