"""Self-attention as one Pallas kernel for TPUs, forward and backward: its grid and its memory.

models/pallas_kernels.py has the kernels. The scores stay in the chip's vector memory (VMEM), and
the kernel reads the qkv tensor as its layer makes it. The backward pass recomputes the scores, so
that it needs nothing but qkv.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import gcd
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from occinv.models.pallas_kernels import LANES, backward, forward, round_up

ROWS = 16  # of a tile in bfloat16
MIB = 2**20
VMEM = {"TPU v4": 16 * MIB}  # bytes that a kernel may use, by kind of device
OTHERS = 48 * MIB  # of the 64 or 128 MiB of v5e, v5p, v6e and 7x
USUAL = 16 * MIB  # the compiler's own limit; it keeps other arrays in the rest
SLACK = 4 / 3  # for what the compiler keeps besides
WHOLE = 256  # queries up to this number are one chunk


class Tiling(NamedTuple):
    """The work of one grid step.

    Attributes:
      heads: The heads of a grid step.
      images: The images of a grid step, one after another.
      queries: The queries that are compared with all keys at a time.
      vmem: The bytes of VMEM that the compiler may use.
    """

    heads: int
    images: int
    queries: int
    vmem: int


def tiling(
    batch: int, count: int, heads: int, size: int, itemsize: int, bias: int | None, kind: str
) -> Tiling | None:
    """Return the work of one grid step of the backward pass; None if nothing fits into VMEM.

    Args:
      batch, count: B and n of [B, n, 3·D].
      heads, size: The number of heads, and their channels.
      itemsize: The bytes of a number of qkv.
      bias: The leading axis of the bias, 1 or B; None: no bias.
      kind: The kind of the device, such as `TPU v5 lite`.
    """
    queries = count if count <= WHOLE else WHOLE if count <= 2 * WHOLE else WHOLE // 2
    aligned = LANES // gcd(LANES, size)  # fewest heads whose channels are whole registers
    least = aligned if heads % aligned == 0 else heads
    groups = [least] if count > WHOLE else [n for n in range(heads, 0, -least) if heads % n == 0]
    most = max(1, WHOLE // count) if bias is None else 1
    for group in groups:
        images = 1 if group < heads else max(n for n in range(1, most + 1) if batch % n == 0)
        rows, width = round_up(count, ROWS), round_up(group * size, LANES)
        blocks = 2 * images * 7 * rows * width * itemsize  # double-buffered q, k, v, g and result
        if bias is not None:
            blocks += 2 * 2 * group * rows * round_up(count, LANES) * 4
        scratch = width * ((4 * round_up(count, LANES) + 3 * rows) * itemsize + 2 * rows * 4)
        scores = 6 * rows * round_up(queries, LANES) * 4
        needed = max(USUAL, round(SLACK * (blocks + scratch + scores)))
        # Only the smallest group may use more than the usual memory.
        if needed <= (VMEM.get(kind, OTHERS) if group == groups[-1] else USUAL):
            return Tiling(group, images, queries, needed)
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def fused_attention(
    products: jax.Array,
    offset: jax.Array,
    bias: jax.Array | None,
    heads: int,
    plan: Tiling,
    interpret: bool = False,
) -> jax.Array:
    """Return softmax(q kᵀ / √size + bias) v of each head, [B, n, D], in the dtype of `products`.

    Args:
      products: [B, n, 3·D], float32 or bfloat16. `products + offset` are queries, keys and values,
        each with its heads in order. They are copied if D is not a multiple of 128.
      offset: float32 [3·D]. The kernel adds it and sums its gradient, so that neither needs another
        pass over memory.
      bias: float32 [B or 1, heads, keys, queries], added to the logits; None: no bias.
      heads: The number of heads.
      plan: From `tiling`.
      interpret: Run on any platform, slowly, instead of compiling for a TPU.
    """
    return _call(
        forward, ("qT", "k", "vT", "oT"), (products,), offset, bias, heads, plan, interpret
    )[0]


def _keep(
    products: Any, offset: Any, bias: Any, heads: int, plan: Tiling, interpret: bool
) -> tuple[jax.Array, Any]:
    kept = products, offset, bias
    return fused_attention(*kept, heads, plan, interpret), kept


def _differentiate(
    heads: int, plan: Tiling, interpret: bool, kept: Any, gradient: jax.Array
) -> Any:
    products, offset, bias = kept
    scratch = "q", "k", "v", "qT", "kT", "gT", "dqT", "dk", "dv"
    arrays = products, gradient.astype(products.dtype)
    found = _call(backward, scratch, arrays, offset, bias, heads, plan, interpret)
    return found if bias is not None else (*found, None)


fused_attention.defvjp(_keep, _differentiate)


def _call(
    kernel: Callable[..., None],
    scratch: tuple[str, ...],
    arrays: tuple[jax.Array, ...],
    offset: jax.Array,
    bias: jax.Array | None,
    heads: int,
    plan: Tiling,
    interpret: bool,
) -> tuple[jax.Array, ...]:
    """Run `kernel` on the products and, for the backward pass, the gradient of o.

    The grid is (groups of heads, groups of images, parts). If a group has all heads, the gradients
    of q, k and v are one block of the result; else they are written in three parts.
    """
    products, is_backward = arrays[0], len(arrays) > 1
    batch, count, channels = products.shape
    dtype = products.dtype
    own = channels // 3
    size, padded = own // heads, round_up(own, LANES)
    groups, steps = heads // plan.heads, batch // plan.images
    width = padded // groups
    parts = 3 if is_backward and groups > 1 else 1

    block = functools.partial(_block, plan, count, groups)

    def row(part: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, width), lambda j, b, n: (0, part * groups + j))

    whole = _pad(offset.reshape(1, 1, channels), 3, padded)[0]
    inputs = [(block(width, part), _pad(products, 3, padded)) for part in range(3)]
    inputs += [(row(part), whole) for part in range(3)]
    outputs = [(block(width, 0), jax.ShapeDtypeStruct((batch, count, padded), dtype))]
    if is_backward:
        inputs.append((block(width, 0), _pad(arrays[1], 1, padded)))
        of_sum = pl.BlockSpec((1, 1, 3 // parts * width), lambda j, b, n: (b, 0, n * groups + j))
        outputs = [
            (
                block(3 // parts * width, None),
                jax.ShapeDtypeStruct((batch, count, 3 * padded), dtype),
            ),
            (of_sum, jax.ShapeDtypeStruct((steps, 1, 3 * padded), jnp.float32)),
        ]
    bias_of = "none"
    if bias is not None:
        bias_of = "image" if bias.shape[0] == batch else "batch"
        spec = pl.BlockSpec(
            (1, plan.heads, count, count), lambda j, b, _: (b * (bias_of == "image"), j, 0, 0)
        )
        inputs.append((spec, bias))
        if is_backward:
            outputs.append((spec, jax.ShapeDtypeStruct(bias.shape, jnp.float32)))
    in_specs, operands = zip(*inputs, strict=True)
    out_specs, out_shape = zip(*outputs, strict=True)
    results: Any = pl.pallas_call(
        functools.partial(
            kernel, heads=plan.heads, size=size, queries=plan.queries, bias_of=bias_of
        ),
        grid=(groups, steps, parts),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=_scratch(scratch, count, width, dtype),
        compiler_params=pltpu.CompilerParams(
            # The gradient of a shared bias is summed in place, one image after another.
            dimension_semantics=(
                "parallel",
                "arbitrary" if bias_of == "batch" else "parallel",
                "arbitrary",
            ),
            vmem_limit_bytes=plan.vmem,
        ),
        cost_estimate=_cost(arrays, out_shape, heads),
        interpret=interpret,
    )(*operands)
    if not is_backward:
        return (_unpad(results[0], 1, own),)
    of_offset = _unpad(results[1].sum(0)[None], 3, own).reshape(channels)
    return (_unpad(results[0], 3, own), of_offset, *results[2:])


def _block(plan: Tiling, count: int, groups: int, size: int, part: int | None) -> pl.BlockSpec:
    """Return a block of `size` channels of q, k or v (0, 1, 2), or of the grid's part for None."""
    return pl.BlockSpec(
        (plan.images, count, size),
        lambda j, b, n: (b, 0, (n if part is None else part) * groups + j),
    )


def _scratch(names: tuple[str, ...], count: int, width: int, dtype: Any) -> list[Any]:
    """Return memory for each name: transposed, or a sum in float32, or [n, channels]."""
    return [
        pltpu.VMEM((width, count), dtype)
        if name.endswith("T")
        else pltpu.VMEM((count, width), jnp.float32 if name in ("dk", "dv") else dtype)
        for name in names
    ]


def _cost(
    arrays: tuple[jax.Array, ...], results: tuple[jax.ShapeDtypeStruct, ...], heads: int
) -> pl.CostEstimate:
    """Return the work of a kernel: two products forward, five backward. Zeros are no work."""
    batch, count, channels = arrays[0].shape
    pairs = batch * count**2
    return pl.CostEstimate(
        flops=(2 if len(arrays) == 1 else 5) * 2 * pairs * channels // 3,
        transcendentals=pairs * heads,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *results)),  # type: ignore[attr-defined]
    )


def _pad(x: jax.Array, parts: int, width: int) -> jax.Array:
    """Pad the channels of each of `parts` parts of [B, n, parts·D] to `width`."""
    own = x.shape[2] // parts
    if own == width:
        return x
    split = x.reshape(*x.shape[:2], parts, own)
    return jnp.pad(split, ((0, 0),) * 3 + ((0, width - own),)).reshape(*x.shape[:2], parts * width)


def _unpad(x: jax.Array, parts: int, own: int) -> jax.Array:
    if x.shape[2] == parts * own:
        return x
    return x.reshape(*x.shape[:2], parts, -1)[..., :own].reshape(*x.shape[:2], parts * own)
