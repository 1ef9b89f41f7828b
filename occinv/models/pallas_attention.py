"""Self-attention as one Pallas kernel for TPUs, forward and backward.

The scores stay in the chip's vector memory (VMEM), and the kernel reads the qkv tensor as its layer
makes it. The backward pass recomputes the scores, so that it needs nothing but qkv. The softmax is
computed in float32.

Scores are stored with the keys along the rows, [keys, queries]. The maximum and the sum over keys
are then sums of vector registers. Along the other axis they would go through the unit that moves
values between lanes, which would be the bottleneck. Only matrices of tokens × channels are
transposed. Heads are narrower than the 128 lanes of a register, so a product takes the aligned
window of lanes around a head, with zeros in place of the other heads in one factor: the matrix unit
is 128 wide anyway, and nothing is shifted.
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

LANES = 128
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
        rows, width = _up(count, ROWS), _up(group * size, LANES)
        blocks = 2 * images * 7 * rows * width * itemsize  # double-buffered q, k, v, g and result
        if bias is not None:
            blocks += 2 * 2 * group * rows * _up(count, LANES) * 4
        scratch = width * ((4 * _up(count, LANES) + 3 * rows) * itemsize + 2 * rows * 4)
        scores = 6 * rows * _up(queries, LANES) * 4
        needed = max(USUAL, round(SLACK * (blocks + scratch + scores)))
        is_last = (
            group == groups[-1]
        )  # fewer heads at a time rather than more than the usual memory
        if needed <= (VMEM.get(kind, OTHERS) if is_last else USUAL):
            return Tiling(group, images, queries, needed)
    return None


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


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
      offset: float32 [3·D]. Added here, it costs no pass over memory, and its gradient neither.
      bias: float32 [B or 1, heads, keys, queries], added to the logits; None: no bias.
      heads: The number of heads.
      plan: From `tiling`.
      interpret: Run on any platform, slowly, instead of compiling for a TPU.
    """
    return _call(
        _forward, ("qT", "k", "vT", "oT"), (products,), offset, bias, heads, plan, interpret
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
    found = _call(_backward, scratch, arrays, offset, bias, heads, plan, interpret)
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
    size, padded = own // heads, _up(own, LANES)
    groups, steps = heads // plan.heads, batch // plan.images
    width = padded // groups
    parts = 3 if is_backward and groups > 1 else 1

    def block(size: int, part: int | None) -> pl.BlockSpec:
        """Return a block of channels of q, k or v (0, 1, 2), or of the grid's part for None."""
        return pl.BlockSpec(
            (plan.images, count, size),
            lambda j, b, n: (b, 0, (n if part is None else part) * groups + j),
        )

    def row(part: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, width), lambda j, b, n: (0, part * groups + j))

    in_specs = [block(width, part) for part in range(3)] + [row(part) for part in range(3)]
    whole = _pad(offset.reshape(1, 1, channels), 3, padded)[0]
    inputs = [_pad(products, 3, padded)] * 3 + [whole] * 3
    out_specs = [block(width, 0)]
    out_shape = [jax.ShapeDtypeStruct((batch, count, padded), dtype)]
    if is_backward:
        in_specs.append(block(width, 0))
        inputs.append(_pad(arrays[1], 1, padded))
        of_sum = pl.BlockSpec((1, 1, 3 // parts * width), lambda j, b, n: (b, 0, n * groups + j))
        out_specs = [block(3 // parts * width, None), of_sum]
        out_shape = [
            jax.ShapeDtypeStruct((batch, count, 3 * padded), dtype),
            jax.ShapeDtypeStruct((steps, 1, 3 * padded), jnp.float32),
        ]
    if bias is not None:
        is_shared = bias.shape[0] != batch
        spec = pl.BlockSpec(
            (1, plan.heads, count, count), lambda j, b, _: (0 if is_shared else b, j, 0, 0)
        )
        in_specs.append(spec)
        inputs.append(bias)
        if is_backward:
            out_specs.append(spec)
            out_shape.append(jax.ShapeDtypeStruct(bias.shape, jnp.float32))
    pairs = batch * heads * count**2
    moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *out_shape))  # type: ignore[attr-defined]
    results: Any = pl.pallas_call(
        functools.partial(
            kernel,
            heads=plan.heads,
            size=size,
            queries=plan.queries,
            bias_of="none" if bias is None else "batch" if is_shared else "image",
        ),
        grid=(groups, steps, parts),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            pltpu.VMEM((width, count), dtype)
            if name.endswith("T")
            else pltpu.VMEM((count, width), jnp.float32 if name in ("dk", "dv") else dtype)
            for name in scratch
        ],
        compiler_params=pltpu.CompilerParams(
            # The gradient of a shared bias is summed in place, one image after another.
            dimension_semantics=(
                "parallel",
                "parallel" if bias is None else "arbitrary",
                "arbitrary",
            ),
            vmem_limit_bytes=plan.vmem,
        ),
        # Two products forward, five backward; the zeros of other heads are no work.
        cost_estimate=pl.CostEstimate(
            flops=(5 if is_backward else 2) * 2 * pairs * size,
            transcendentals=pairs,
            bytes_accessed=moved,
        ),
        interpret=interpret,
    )(*inputs)
    if not is_backward:
        return (_unpad(results[0], 1, own),)
    of_offset = _unpad(results[1].sum(0)[None], 3, own).reshape(channels)
    return (_unpad(results[0], 3, own), of_offset, *results[2:])


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


def _forward(*refs: Any, heads: int, size: int, queries: int, bias_of: str) -> None:
    """Write o = softmax(q kᵀ / √size + bias) v of a group of heads."""
    products, offsets, refs = refs[:3], refs[3:6], refs[6:]
    bias, refs = (None, refs) if bias_of == "none" else (refs[0], refs[1:])
    out, qT, k, vT, oT = refs
    images, count, width = out.shape
    _clear_padding(oT, heads * size)

    def one(image: Any) -> None:
        q, k[...], v = _shifted(products, offsets, image)
        qT[...] = q.T
        vT[...] = v.T

        def scores(head: int, chunk: Any) -> Any:
            return _dot(k[:, _around(head, size, width)], _rows_of(qT, head, size, chunk))

        def mix(head: int, chunk: Any, found: Any) -> None:
            own = slice(head * size, (head + 1) * size)
            weights, total = _softmax(found, size, bias, head, chunk)
            mixed = _dot(vT[own], weights.astype(vT.dtype))
            oT[own, chunk] = (mixed / total).astype(oT.dtype)

        _over_chunks(count, queries, functools.partial(_over_heads, heads, scores, mix))
        out[image] = oT[...].T

    _over_images(images, one)


def _backward(*refs: Any, heads: int, size: int, queries: int, bias_of: str) -> None:
    """Write the gradients of q, k, v, offset and bias of a group of heads, given that of o, g."""
    products, offsets, refs = refs[:3], refs[3:6], refs[6:]
    bias = dbias = None
    if bias_of == "none":
        g, out, doffset, *scratch = refs
    else:
        g, bias, out, doffset, dbias, *scratch = refs
    q, k, v, qT, kT, gT, dqT, dk, dv = scratch
    images, count, width = g.shape
    part, is_first = pl.program_id(2), pl.program_id(2) == 0
    _clear_padding(dqT, heads * size)
    if dbias is not None:

        @pl.when(is_first if bias_of == "image" else is_first & (pl.program_id(1) == 0))
        def _() -> None:
            dbias[...] = jnp.zeros_like(dbias)

    def one(image: Any) -> None:
        q[...], k[...], v[...] = _shifted(products, offsets, image)
        qT[...] = q[...].T
        kT[...] = k[...].T
        gT[...] = g[image].T
        dk[...] = jnp.zeros_like(dk)
        dv[...] = jnp.zeros_like(dv)

        def pairs(head: int, chunk: Any) -> Any:
            around = _around(head, size, width)
            return (
                _dot(k[:, around], _rows_of(qT, head, size, chunk)),
                _dot(v[:, around], _rows_of(gT, head, size, chunk)),
            )

        def gradients(head: int, chunk: Any, found: Any) -> None:
            around, own = _around(head, size, width), slice(head * size, (head + 1) * size)
            weights, total = _softmax(found[0], size, bias, head, chunk)
            p, dp = weights * (1 / total), found[1]
            ds = p * (dp - (p * dp).sum(0, keepdims=True))
            if dbias is not None:
                dbias[0, head, :, chunk] += ds
            ds = (ds * size**-0.5).astype(kT.dtype)
            dqT[own, chunk] = _dot(kT[own], ds).astype(dqT.dtype)
            p = p.astype(kT.dtype)
            dv[:, around] += _dot(p, _lanes_of(g[image, chunk, around], head, size))
            dk[:, around] += _dot(ds, _lanes_of(q[chunk, around], head, size))

        _over_chunks(count, queries, functools.partial(_over_heads, heads, pairs, gradients))

    def write(image: Any, number: int, place: slice) -> None:
        found = dqT[...].T if number == 0 else (dk, dv)[number - 1][...]
        out[image, :, place] = found.astype(out.dtype)
        doffset[0, :, place] += found.astype(jnp.float32).sum(0, keepdims=True)

    doffset[...] = jnp.zeros_like(doffset)
    if out.shape[2] == 3 * width:

        def whole(image: Any) -> None:
            one(image)
            for number in range(3):
                write(image, number, slice(number * width, (number + 1) * width))

        _over_images(images, whole)
        return
    pl.when(is_first)(lambda: one(0))
    for number in range(3):
        pl.when(part == number)(functools.partial(write, 0, number, slice(None)))


def _shifted(products: Any, offsets: Any, image: Any) -> tuple[Any, ...]:
    """Return q, k and v of an image."""
    pairs = zip(products, offsets, strict=True)
    return tuple(x[image] + offset[...].astype(x.dtype) for x, offset in pairs)


def _dot(a: Any, b: Any) -> Any:
    """Multiply two matrices; the result is float32, exact for float32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _around(head: int, size: int, width: int) -> slice:
    """Return the whole registers of lanes that hold the channels of a head."""
    first, last = head * size, (head + 1) * size
    return slice(first // LANES * LANES, min(_up(last, LANES), width))


def _lanes_of(x: Any, head: int, size: int) -> Any:
    """Set the lanes of other heads to 0 in [n, lanes `_around` a head]."""
    offset = head * size % LANES
    if (offset, x.shape[1]) == (0, size):
        return x
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where((lane >= offset) & (lane < offset + size), x, jnp.zeros_like(x))


def _rows_of(xT: Any, head: int, size: int, chunk: Any) -> Any:
    """Return [rows `_around` a head, chunk of queries] with 0 in the rows of other heads."""
    around, first = _around(head, size, xT.shape[0]), head * size
    own = xT[first : first + size, chunk]
    zeros = [
        jnp.zeros((n, own.shape[1]), own.dtype)
        for n in (first - around.start, around.stop - first - size)
    ]
    return jnp.concatenate([x for x in (zeros[0], own, zeros[1]) if x.shape[0]])


def _softmax(products: Any, size: int, bias: Any, head: int, chunk: Any) -> tuple[Any, Any]:
    """Return weights [keys, queries], not yet divided by their totals, and the totals."""
    logits = products * size**-0.5
    if bias is not None:
        logits += bias[0, head, :, chunk]
    weights = jnp.exp(logits - logits.max(0, keepdims=True))
    return weights, weights.sum(0, keepdims=True)


def _over_heads(
    heads: int, first: Callable[..., Any], then: Callable[..., None], chunk: Any
) -> None:
    """Call `then(head, chunk, first(head, chunk))` for all heads.

    The products of the next head are issued before this head's softmax, which the matrix unit would
    wait for. The compiler does not reorder so far itself.
    """
    following = first(0, chunk)
    for head in range(heads):
        found = following
        if head + 1 < heads:
            following = first(head + 1, chunk)
        then(head, chunk, found)


def _over_chunks(count: int, queries: int, call: Callable[[Any], None]) -> None:
    """Call `call` for each chunk of queries: a loop over the whole ones, then the rest."""
    chunks, rest = divmod(count, queries)
    if chunks == 1:
        call(slice(0, queries))
    else:

        @pl.loop(0, chunks)
        def _(number: Any) -> None:
            call(pl.ds(pl.multiple_of(number * queries, queries), queries))

    if rest:
        call(slice(chunks * queries, count))


def _over_images(count: int, call: Callable[[Any], None]) -> None:
    if count == 1:
        call(0)
    else:
        pl.loop(0, count)(call)


def _clear_padding(xT: Any, channels: int) -> None:
    if channels < xT.shape[0]:
        xT[channels:] = jnp.zeros((xT.shape[0] - channels, xT.shape[1]), xT.dtype)
