"""InfoNCE in memory that does not grow with the number of keys, on one device or on many.

The plain formula (`similarities` and `info_nce`) holds the cosine of every query with every key.
Here a query meets `block` keys at a time: the softmax is an online one (a running maximum, and a
sum that is rescaled when it moves), and the backward pass computes each block's cosines again. Over
several devices each keeps its queries and the keys go round the ring, so that none ever holds all.

The three kinds of negatives are one thing: G problems, in each of which Q queries meet K keys.

    position   one problem for each token, of the images     G = T   Q = K = B
    image      one problem for each image, of its tokens     G = B   Q = K = T
    batch      one problem of all tokens of all images       G = 1   Q = K = B·T
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from occinv.losses.losses import Negatives, info_nce, similarities, unit
from occinv.parallel import IMAGES
from occinv.schema import UserError


def check_block(block: int | None) -> None:
    """Raises UserError where `objective.block` is no number of keys."""
    if block is not None and block < 1:
        raise UserError(
            f"objective.block={block}, expected 1 or more keys at once, or None for all"
        )


def chunked_info_nce(
    queries: jax.Array,
    keys: jax.Array,
    negatives: Negatives,
    temperature: float,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Eq. (9) as `info_nce` of `similarities`, and whether the positive is the nearest key.

    By blocks it can be differentiated once, by queries and keys, and a device with b images holds
    b·T·block cosines at a time.

    Args:
      queries: q(p(z1)), float32 [B, T, D]: T tokens of each image of the global batch.
      keys: p(z2), float32 [B, T, D].
      negatives: which keys a query is told apart from, as in `similarities`.
      temperature: τ.
      block: the keys that a query meets at once, 1 or more; None: all, by the plain formula.
      mesh: over which the images lie, in equal parts (`parallel.by_image`); None: on one device.

    Returns:
      loss float32 [B, T], and float32 [B, T], 1 where no other key is nearer than the positive (of
      equally near ones the first counts, as with `argmax`) and 0 elsewhere.
    """
    if block is None:
        cosines, positive = similarities(queries, keys, negatives)
        agrees = (cosines.argmax(-1) == positive).astype(jnp.float32)
        return info_nce(cosines, positive, temperature), agrees
    devices = 1 if mesh is None else mesh.size

    def of_device(queries: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        # An image has its own tokens with it: only other images may be on other devices.
        ring = 1 if negatives == "image" else devices
        rows = problems(queries, negatives), problems(keys, negatives)
        found = contrast(*rows, temperature, min(block, rows[1].shape[1]), ring)
        loss, agrees = (by_image(x, queries.shape[:2], negatives) for x in found)
        return loss, agrees

    if devices > 1:
        by_rows = PartitionSpec(IMAGES)
        of_device = jax.shard_map(of_device, mesh=mesh, in_specs=by_rows, out_specs=by_rows)
    return of_device(unit(queries), unit(keys))


def problems(x: jax.Array, negatives: Negatives) -> jax.Array:
    """[B, T, D] as the problems of such negatives: [G, Q, D]."""
    if negatives == "position":
        return x.swapaxes(0, 1)
    return x if negatives == "image" else x.reshape(1, -1, x.shape[-1])


def by_image(x: jax.Array, shape: tuple[int, ...], negatives: Negatives) -> jax.Array:
    """Values [G, Q] of `problems` where they came from: [B, T], which is `shape`."""
    return x.swapaxes(0, 1) if negatives == "position" else x.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def contrast(
    queries: jax.Array, keys: jax.Array, temperature: float, block: int, ring: int
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE of unit vectors [G, Q, D] and [G, K, D], query i's positive being key i.

    Returns loss and agreement, float32 [G, Q]. With `ring` devices, more than 1, this runs in a
    `shard_map`: Q and K are the device's own share, and device r holds the r-th share.
    """
    outcome, _ = forward(queries, keys, temperature, block, ring)
    return outcome


def forward(
    queries: jax.Array, keys: jax.Array, temperature: float, block: int, ring: int
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """`contrast`, and what its backward pass needs: no array has both Q and K."""
    own = own_index(queries, ring)

    def step(carry: Any, some: jax.Array, index: jax.Array, start: Any) -> Any:
        """The largest cosine so far, its key, Σ exp of all less the largest, the positive's."""
        maximum, nearest, total, positive = carry
        cosines, is_positive = compare(queries, some, index, own)
        top, its_key = cosines.max(-1), index[cosines.argmax(-1)]
        # Round the ring keys come in another order; of equal ones the first still counts.
        is_nearer = (top > maximum) | ((top == maximum) & (its_key < nearest))
        largest = jnp.maximum(maximum, top)
        total = total * jnp.exp((maximum - largest) / temperature)
        total = total + jnp.exp((cosines - largest[..., None]) / temperature).sum(-1)
        positive = positive + jnp.where(is_positive, cosines, 0).sum(-1)
        return largest, jnp.where(is_nearer, its_key, nearest), total, positive

    def visit(carry: Any, keys: jax.Array, owner: Any) -> tuple[Any, jax.Array]:
        return over_blocks(step, carry, keys, block, owner), keys

    zero = 0 * queries[..., 0]  # unlike a constant, known to differ between devices
    start = zero - jnp.inf, zero.astype(jnp.int32), zero, zero
    (maximum, nearest, total, positive), _ = around(visit, start, keys, ring)
    loss = jnp.log(total) + (maximum - positive) / temperature
    agrees = (nearest == own).astype(jnp.float32)
    return (loss, agrees), (queries, keys, maximum, total)


def backward(
    temperature: float, block: int, ring: int, kept: Any, slopes: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Gradients to queries and keys, those to the keys going round the ring with them."""
    queries, keys, maximum, total = kept
    own, slope = own_index(queries, ring), slopes[0] / temperature

    def visit(to_queries: jax.Array, passed: Any, owner: Any) -> tuple[jax.Array, Any]:
        keys, to_keys = passed

        def step(carry: Any, some: jax.Array, index: jax.Array, start: Any) -> Any:
            to_queries, to_keys = carry
            cosines, is_positive = compare(queries, some, index, own)
            softmax = jnp.exp((cosines - maximum[..., None]) / temperature) / total[..., None]
            to_cosines = slope[..., None] * (softmax - is_positive.astype(softmax.dtype))
            to_queries = to_queries + jnp.einsum("gqk,gkd->gqd", to_cosines, some)
            to_some = jax.lax.dynamic_slice_in_dim(to_keys, start, block, 1)
            to_some = to_some + jnp.einsum("gqk,gqd->gkd", to_cosines, queries)
            return to_queries, jax.lax.dynamic_update_slice_in_dim(to_keys, to_some, start, 1)

        to_queries, to_keys = over_blocks(step, (to_queries, to_keys), keys, block, owner)
        return to_queries, (keys, to_keys)

    to_queries, (_, to_keys) = around(visit, 0 * queries, (keys, 0 * keys), ring)
    return to_queries, to_keys


contrast.defvjp(forward, backward)


def own_index(queries: jax.Array, ring: int) -> jax.Array:
    """The positives of this device's queries among the keys of all devices: int32 [Q]."""
    count = queries.shape[1]
    before = 0 if ring == 1 else jax.lax.axis_index(IMAGES) * count
    return before + jnp.arange(count)


def compare(
    queries: jax.Array, some: jax.Array, index: jax.Array, own: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cosines [G, Q, block] with a block of keys, -inf where `index` is -1; who is the positive."""
    cosines = jnp.einsum("gqd,gkd->gqk", queries, some)
    return jnp.where(index < 0, -jnp.inf, cosines), index == own[:, None]


def over_blocks(
    step: Callable[[Any, jax.Array, jax.Array, Any], Any],
    carry: Any,
    keys: jax.Array,
    block: int,
    owner: Any,
) -> Any:
    """`carry` after step(carry, some, index, start) of each block of a device's keys [G, K, D].

    `some` are the keys from `start` on, `index` int32 [block] their numbers among the keys of all
    devices. Where blocks do not divide K, the last one begins within the one before it, and what
    that one has shown has the number -1.
    """
    count = keys.shape[1]

    def one(number: Any, carry: Any) -> Any:
        start = jnp.minimum(number * block, count - block)
        position = start + jnp.arange(block)
        index = jnp.where(position < number * block, -1, owner * count + position)
        return step(carry, jax.lax.dynamic_slice_in_dim(keys, start, block, 1), index, start)

    return jax.lax.fori_loop(0, -(-count // block), one, carry)


def around(
    visit: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, passed: Any, ring: int
) -> tuple[Any, Any]:
    """`carry` after carry, passed = visit(carry, passed, owner) of what each device has to pass.

    Every device hands what it was passed to the next one `ring` times, so that it comes home.
    """
    if ring == 1:
        return visit(carry, passed, 0)
    onwards = [(device, (device + 1) % ring) for device in range(ring)]

    def turn(number: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        owner = (jax.lax.axis_index(IMAGES) - number) % ring
        carry, passed = visit(*state, owner)
        return carry, jax.lax.ppermute(passed, IMAGES, onwards)

    return jax.lax.fori_loop(0, ring, turn, (carry, passed))
