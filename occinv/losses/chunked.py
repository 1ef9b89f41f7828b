"""InfoNCE in memory that does not grow with the number of keys, on one device or many.

The plain formula (`similarities` and `info_nce`) holds the cosine of every query with every key.
Here a query meets one chunk of keys at a time: the softmax is computed online (a running maximum,
and a sum that is rescaled when the maximum changes), and the backward pass recomputes each chunk's
cosines. Over several devices each device keeps its queries and the keys travel around the ring, so
that no device ever holds all keys.

All three kinds of negatives are G independent problems, in each of which Q queries meet K keys:

    position   one problem for each token, over the images     G = T   Q = K = B
    image      one problem for each image, over its tokens     G = B   Q = K = T
    batch      one problem of all tokens of all images         G = 1   Q = K = B·T
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from occinv.losses.contrastive import Negatives, info_nce, similarities, unit
from occinv.parallel import IMAGES

ABSENT = -1e9  # finite, so that gradients are


def chunked_info_nce(
    queries: jax.Array,
    keys: jax.Array,
    negatives: Negatives,
    temperature: float,
    key_chunk: int | None = None,
    mesh: Mesh | None = None,
    present: jax.Array | None = None,
    group: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Compute Eq. (9), as `info_nce` of `similarities`, and whether each positive is nearest.

    With a `key_chunk` the loss can be differentiated once, by queries and keys, and a device with b
    images holds b·T·key_chunk cosines at a time.

    Args:
      queries: q(p(z1)), float32 [B, T, D]: T tokens of each image of the global batch.
      keys: p(z2), float32 [B, T, D].
      negatives: The keys that a query is contrasted with, as in `similarities`.
      temperature: τ.
      key_chunk: The number of keys that a query meets at once, 1 or more; None: all of them, by the
        plain formula.
      mesh: The devices that share the images equally (`parallel.by_image`); None: one device.
      present: bool [B, T], the keys that exist; the others are no negatives. A query whose own key
        does not exist has no meaningful loss. None: all exist.
      group: Contrast each image only with the images of its group: so many consecutive images of
        the batch, which they divide. None: with the whole batch.

    Returns:
      loss float32 [B, T], and agreement float32 [B, T], 1 where no other key is nearer than the
      positive (of equally near keys the first counts, as in `argmax`) and 0 elsewhere.
    """
    if group is not None:
        # The compiler places the groups on the devices, so there is no ring.
        arrays = queries, keys, jnp.ones(keys.shape[:2], bool) if present is None else present
        groups = (x.reshape(-1, group, *x.shape[1:]) for x in arrays)
        found = jax.vmap(
            lambda q, k, p: chunked_info_nce(q, k, negatives, temperature, key_chunk, present=p)
        )(*groups)
        return found[0].reshape(queries.shape[:2]), found[1].reshape(queries.shape[:2])
    queries, keys = unit(queries), unit(keys)
    if present is not None:
        # One more coordinate lowers the cosine with an absent key so far that its exp is 0.
        absent = jnp.where(present, 0.0, ABSENT)[..., None]
        keys = jnp.concatenate([keys, absent.astype(keys.dtype)], axis=-1)
        queries = jnp.concatenate([queries, jnp.ones_like(queries[..., :1])], axis=-1)
    if key_chunk is None:
        cosines, positive = similarities(queries, keys, negatives)
        agrees = (cosines.argmax(-1) == positive).astype(jnp.float32)
        return info_nce(cosines, positive, temperature), agrees
    devices = 1 if mesh is None else mesh.size

    def on_device(queries: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        # All tokens of an image are on one device, so `image` needs no ring.
        ring = 1 if negatives == "image" else devices
        rows = to_problems(queries, negatives), to_problems(keys, negatives)
        found = contrast(*rows, temperature, min(key_chunk, rows[1].shape[1]), ring)
        loss, agrees = (from_problems(x, queries.shape[:2], negatives) for x in found)
        return loss, agrees

    if devices > 1:
        by_rows = PartitionSpec(IMAGES)
        on_device = jax.shard_map(on_device, mesh=mesh, in_specs=by_rows, out_specs=by_rows)
    return on_device(queries, keys)


def agreement_by_chance(
    shape: tuple[int, ...],
    negatives: Negatives,
    present: jax.Array | None = None,
    group: int | None = None,
) -> jax.Array:
    """The agreement of `chunked_info_nce` if the keys were in random order: 1 / number of keys.

    Args:
      shape: B images, T tokens, and any other axes, which do not matter.
      negatives, present, group: As in `chunked_info_nce`.

    Returns:
      float32 [B, T].
    """
    shape = shape[:2]
    exists = jnp.ones(shape, jnp.float32) if present is None else present.astype(jnp.float32)
    groups = exists.reshape(-1, group or shape[0], shape[1])
    axes = {"position": (1,), "image": (2,), "batch": (1, 2)}[negatives]
    keys = jnp.maximum(groups.sum(axes, keepdims=True), 1)
    return jnp.broadcast_to(1 / keys, groups.shape).reshape(shape)


def to_problems(x: jax.Array, negatives: Negatives) -> jax.Array:
    """Arrange [B, T, D] as the problems of these negatives: [G, Q, D]."""
    if negatives == "position":
        return x.swapaxes(0, 1)
    return x if negatives == "image" else x.reshape(1, -1, x.shape[-1])


def from_problems(x: jax.Array, shape: tuple[int, ...], negatives: Negatives) -> jax.Array:
    """Arrange values [G, Q] of `to_problems` by image and token: [B, T], which is `shape`."""
    return x.swapaxes(0, 1) if negatives == "position" else x.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def contrast(
    queries: jax.Array, keys: jax.Array, temperature: float, key_chunk: int, ring: int
) -> tuple[jax.Array, jax.Array]:
    """Compute InfoNCE of unit vectors [G, Q, D] and [G, K, D]; query i's positive is key i.

    Returns loss and agreement, float32 [G, Q]. With a `ring` of several devices this runs in a
    `shard_map`: Q and K are the device's own share, and device r holds the r-th share.
    """
    outcome, _ = forward(queries, keys, temperature, key_chunk, ring)
    return outcome


def forward(
    queries: jax.Array, keys: jax.Array, temperature: float, key_chunk: int, ring: int
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Compute `contrast` and the residuals of its backward pass; no array has both Q and K."""
    own = own_index(queries, ring)

    def step(carry: Any, chunk: jax.Array, index: jax.Array, start: Any) -> Any:
        """Update the largest cosine, its key, Σ exp relative to the largest, the positive's."""
        maximum, nearest, total, positive = carry
        cosines, is_positive = compare(queries, chunk, index, own)
        top, its_key = cosines.max(-1), index[cosines.argmax(-1)]
        # Around the ring keys come in another order; of equal ones the first still counts.
        is_nearer = (top > maximum) | ((top == maximum) & (its_key < nearest))
        largest = jnp.maximum(maximum, top)
        total = total * jnp.exp((maximum - largest) / temperature)
        total = total + jnp.exp((cosines - largest[..., None]) / temperature).sum(-1)
        positive = positive + jnp.where(is_positive, cosines, 0).sum(-1)
        return largest, jnp.where(is_nearer, its_key, nearest), total, positive

    def visit(carry: Any, keys: jax.Array, owner: Any) -> tuple[Any, jax.Array]:
        return over_chunks(step, carry, keys, key_chunk, owner), keys

    zero = 0 * queries[..., 0]  # unlike a constant, known to differ between devices
    start = zero - jnp.inf, zero.astype(jnp.int32), zero, zero
    (maximum, nearest, total, positive), _ = around_ring(visit, start, keys, ring)
    loss = jnp.log(total) + (maximum - positive) / temperature
    agrees = (nearest == own).astype(jnp.float32)
    return (loss, agrees), (queries, keys, maximum, total)


def backward(
    temperature: float, key_chunk: int, ring: int, kept: Any, slopes: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Compute gradients of queries and keys; a key's gradient travels around the ring with it."""
    queries, keys, maximum, total = kept
    own, slope = own_index(queries, ring), slopes[0] / temperature

    def visit(to_queries: jax.Array, passed: Any, owner: Any) -> tuple[jax.Array, Any]:
        keys, to_keys = passed

        def step(carry: Any, chunk: jax.Array, index: jax.Array, start: Any) -> Any:
            to_queries, to_keys = carry
            cosines, is_positive = compare(queries, chunk, index, own)
            softmax = jnp.exp((cosines - maximum[..., None]) / temperature) / total[..., None]
            to_cosines = slope[..., None] * (softmax - is_positive.astype(softmax.dtype))
            to_queries = to_queries + jnp.einsum("gqk,gkd->gqd", to_cosines, chunk)
            to_chunk = jax.lax.dynamic_slice_in_dim(to_keys, start, key_chunk, 1)
            to_chunk = to_chunk + jnp.einsum("gqk,gqd->gkd", to_cosines, queries)
            return to_queries, jax.lax.dynamic_update_slice_in_dim(to_keys, to_chunk, start, 1)

        to_queries, to_keys = over_chunks(step, (to_queries, to_keys), keys, key_chunk, owner)
        return to_queries, (keys, to_keys)

    to_queries, (_, to_keys) = around_ring(visit, 0 * queries, (keys, 0 * keys), ring)
    return to_queries, to_keys


contrast.defvjp(forward, backward)


def own_index(queries: jax.Array, ring: int) -> jax.Array:
    """Return the positives of this device's queries among the keys of all devices: int32 [Q]."""
    count = queries.shape[1]
    before = 0 if ring == 1 else jax.lax.axis_index(IMAGES) * count
    return before + jnp.arange(count)


def compare(
    queries: jax.Array, chunk: jax.Array, index: jax.Array, own: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return cosines [G, Q, chunk], -inf where `index` is -1, and which keys are the positives."""
    cosines = jnp.einsum("gqd,gkd->gqk", queries, chunk)
    return jnp.where(index < 0, -jnp.inf, cosines), index == own[:, None]


def over_chunks(
    step: Callable[[Any, jax.Array, jax.Array, Any], Any],
    carry: Any,
    keys: jax.Array,
    key_chunk: int,
    owner: Any,
) -> Any:
    """Apply carry = step(carry, chunk, index, start) to each chunk of a device's keys [G, K, D].

    `index` int32 [key_chunk] numbers the keys of a chunk among those of all devices. Where chunks
    do not divide K, the last chunk overlaps the one before it, and the overlap has the index -1.
    """
    count = keys.shape[1]

    def one(number: Any, carry: Any) -> Any:
        start = jnp.minimum(number * key_chunk, count - key_chunk)
        position = start + jnp.arange(key_chunk)
        index = jnp.where(position < number * key_chunk, -1, owner * count + position)
        chunk = jax.lax.dynamic_slice_in_dim(keys, start, key_chunk, 1)
        return step(carry, chunk, index, start)

    return jax.lax.fori_loop(0, -(-count // key_chunk), one, carry)


def around_ring(
    visit: Callable[[Any, Any, Any], tuple[Any, Any]], carry: Any, passed: Any, ring: int
) -> tuple[Any, Any]:
    """Apply carry, passed = visit(carry, passed, owner) to what each device of the ring holds.

    Every device passes `passed` on to the next device `ring` times, so that it returns home.
    """
    if ring == 1:
        return visit(carry, passed, 0)
    onward = [(device, (device + 1) % ring) for device in range(ring)]

    def turn(number: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
        owner = (jax.lax.axis_index(IMAGES) - number) % ring
        carry, passed = visit(*state, owner)
        return carry, jax.lax.ppermute(passed, IMAGES, onward)

    return jax.lax.fori_loop(0, ring, turn, (carry, passed))
