"""The losses of BEiT and CAE against loops in float64, written from the papers.

The loops get what the papers take as given: tokens of the encoder, and the views that were drawn.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_vit import erf_gelu, norm, softmax
from small_objectives import (
    COUNT,
    IMAGES,
    PATCH,
    SIDE,
    Found,
    make,
    make_batch,
    rngs_of,
    run,
    start,
)

from occinv.models.position import sincos
from occinv.objectives import forward

NUM_IDS, HEADS = 5, 2
FIELDS: dict[str, Any] = {
    "tokenizer": {"name": "kmeans", "num_ids": NUM_IDS},
    "min_rectangle": 2,
}


def ids_of(image: np.ndarray, means: np.ndarray) -> list[int]:
    """Return the number of the nearest mean of each patch of one uint8 image."""
    found = []
    for row in range(SIDE):
        for column in range(SIDE):
            y, x = row * PATCH, column * PATCH
            patch = image[y : y + PATCH, x : x + PATCH].astype(float).ravel() / 255
            found.append(min(range(len(means)), key=lambda k: ((patch - means[k]) ** 2).sum()))
    return found


def cross_entropy(logits: np.ndarray, right: int) -> float:
    return math.log(sum(math.exp(v) for v in logits)) - float(logits[right])


def check(found: Found, logits: np.ndarray, extra: np.ndarray) -> None:
    """Check loss and accuracy by logits [B, R, num_ids] of the removed patches in raster order."""
    means = found.before["tokenizer"]["means"].astype(float)
    used = set()
    for b in range(IMAGES):
        ids, removed = ids_of(found.image[b], means), np.flatnonzero(~found.visible[0][b])
        used |= {ids[n] for n in removed}
        terms = [cross_entropy(logits[b, r], ids[n]) for r, n in enumerate(removed)]
        right = [logits[b, r].argmax() == ids[n] for r, n in enumerate(removed)]
        assert found.loss[b] == pytest.approx(np.mean(terms) + extra[b], rel=1e-4)
        assert found.metrics["accuracy"][b] == pytest.approx(np.mean(right))
    assert len(used) > 2  # with fewer ids the test would show little


def test_beit() -> None:
    objective = make("beit", mask_ratio=0.375, color=None, **FIELDS)
    found = run(objective, lambda net, views, ctx: net.encode(views[0]).tokens)
    first, second = found.visible
    assert (first.sum(1) == 10).all() and second.all()
    head = {name: value.astype(float) for name, value in found.params["head"].items()}
    removed = np.stack([z[1:][~seen] for z, seen in zip(found.given, first, strict=True)])
    check(found, removed.astype(float) @ head["kernel"] + head["bias"], np.zeros(IMAGES))


def linear(x: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Compute the attention of queries [m, D] to keys and values [n, D], head by head."""
    size = q.shape[1] // HEADS
    parts = []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        parts.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(size)) @ v[:, part])
    return np.concatenate(parts, 1)


def mlp(x: np.ndarray, block: dict[str, Any]) -> np.ndarray:
    return linear(erf_gelu(linear(x, block["mlp"]["in"])), block["mlp"]["out"])


def layers(tree: Any) -> list[Any]:
    """Return the parameters of each block of a stack, in order, in float64."""
    if isinstance(tree, dict):
        parts = {name: layers(value) for name, value in tree.items()}
        count = len(next(iter(parts.values())))
        return [{name: values[i] for name, values in parts.items()} for i in range(count)]
    return list(tree.astype(float))


def regressed(w: Any, context: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return latents and logits of one image's removed patches, from tokens [n, D] of the rest."""
    position = sincos(SIDE, context.shape[1])[1:].astype(float)
    of_context, of_rest = position[shown], position[~shown]
    x = np.tile(w["mask_token"].astype(float), (len(of_rest), 1))
    for block in layers(w["scan"]):
        cross, everything = block["attention"], np.concatenate([context, x])
        where = np.concatenate([of_context, of_rest])
        mixed = attention(
            linear(norm(x + of_rest, **block["norm_q"]), cross["q"]),
            linear(norm(everything + where, **block["norm_k"]), cross["k"]),
            linear(norm(everything, **block["norm_v"]), cross["v"]),
        )
        x = norm(
            x + block["scale_attention"]["scale"] * linear(mixed, cross["out"]), **block["norm_mlp"]
        )
        x = x + block["scale_mlp"]["scale"] * mlp(x, block)
    latents = norm(x, **w["norm"])
    x = latents + of_rest
    for block in layers(w["decoder"]["scan"]):
        qkv = linear(norm(x, **block["norm1"]), block["attention"]["qkv"])
        q, k, v = qkv.reshape(len(x), 3, -1).swapaxes(0, 1)
        x = x + block["scale1"]["scale"] * linear(attention(q, k, v), block["attention"]["out"])
        x = x + block["scale2"]["scale"] * mlp(norm(x, **block["norm2"]), block)
    return latents, linear(norm(x, **w["decoder_norm"]), w["head"])


def test_no_gradient_flows_through_the_latents_that_cae_regresses() -> None:
    objective = make("cae", regressor_depth=1, decoder_depth=1, **FIELDS)
    params, state = start(objective)
    batch, at = make_batch(), jnp.int32(0)

    def total(params: Any) -> jax.Array:
        _, (_, latents) = forward.represent(objective, params, state, batch, rngs_of(0), at)
        return latents.sum()

    gradient = jax.jit(jax.grad(total))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_cae() -> None:
    weight = 0.7
    objective = make(
        "cae", regressor_depth=2, decoder_depth=2, align_weight=weight, layer_scale=0.1, **FIELDS
    )
    found = run(objective, lambda net, views, ctx: [net.encode(v).tokens[:, 1:] for v in views])
    first, second = found.visible
    assert (first.sum(1) == COUNT // 2).all()
    np.testing.assert_array_equal(first, ~second)
    contexts, others = found.given
    logits, alignment = [], []
    for b in range(IMAGES):
        latents, predicted = regressed(
            found.params["regressor"], contexts[b].astype(float), first[b]
        )
        logits.append(predicted)
        alignment.append(((latents - others[b].astype(float)) ** 2).mean())
    np.testing.assert_allclose(found.metrics["alignment"], alignment, rtol=1e-4)
    check(found, np.stack(logits), weight * np.array(alignment))
