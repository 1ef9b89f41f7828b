"""The Pallas kernels of attention: one grid step, which is a group of heads of some images.

The softmax is computed in float32.

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
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

LANES = 128  # of a register


def round_up(count: int, multiple: int) -> int:
    """Return the least multiple that is not less than `count`."""
    return -(-count // multiple) * multiple


def forward(*refs: Any, heads: int, size: int, queries: int, bias_of: str) -> None:
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


def backward(*refs: Any, heads: int, size: int, queries: int, bias_of: str) -> None:
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
    return slice(first // LANES * LANES, min(round_up(last, LANES), width))


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

    The products of the next head come before this head's softmax. Otherwise the matrix unit waits
    for the softmax: the compiler does not move the products itself.
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
