"""Weighted nearest neighbors: how well frozen features tell classes apart, without training.

The protocol of the official DINO (`eval_knn.py`): features of the training images under the central
crop, scaled to length 1; each of the k nearest of a held-out image votes for its label with weight
exp(cosine / τ).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from occinv.data.batch import Batch
from occinv.losses.losses import unit
from occinv.models.vit import ViT
from occinv.parallel import fetch, put_batch, replicated
from occinv.schema import UserError, nearest
from occinv.transforms.view import normalize, unit_range

Pooling = Literal["class", "mean"]
CHUNK = 65536  # training features compared at once: bounds the memory of the similarities


class Labeled(NamedTuple):
    """Features with their labels."""

    features: np.ndarray  # float32 [n, D], of length 1
    labels: np.ndarray  # int32 [n]


class Knn(NamedTuple):
    """Accuracies in [0, 1], and what they were measured with."""

    top1: float
    top5: float
    neighbors: int
    temperature: float
    pooling: str
    images: int  # held out
    training_images: int


def knn(training: Labeled, held_out: Labeled, neighbors: int, temperature: float) -> Any:
    """(top1, top5): shares of held-out images whose label has most votes, or is among five.

    Raises UserError for a number of neighbors that there are not, and a temperature of 0 or less.
    """
    count = len(training.labels)
    if not 1 <= neighbors <= count:
        raise UserError(f"--neighbors {neighbors}, expected 1 to {count}, the training images")
    if not temperature > 0:
        raise UserError(f"--temperature {temperature}, expected a number above 0")
    classes = int(max(training.labels.max(), held_out.labels.max())) + 1
    hits = np.zeros(2)
    for start in range(0, len(held_out.labels), 1024):
        queries = jnp.asarray(held_out.features[start : start + 1024])
        similarity, label = _nearest(training, queries, neighbors)
        votes = _votes(similarity, label, temperature, classes)
        own = held_out.labels[start : start + 1024, None]
        for_own = np.take_along_axis(votes, own, 1)
        # Classes with as many votes come first, so that a class without any is never an answer.
        better = (votes >= for_own).sum(1) - 1
        hits += [((better < first) & (for_own[:, 0] > 0)).sum() for first in (1, 5)]
    return tuple(hits / len(held_out.labels))


def _nearest(training: Labeled, queries: jax.Array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and labels of the `count` nearest of each query, [B, count] each."""
    best = np.empty((len(queries), 0), np.float32)
    label = np.empty((len(queries), 0), np.int32)
    for start in range(0, len(training.labels), CHUNK):
        chunk = training.features[start : start + CHUNK]
        found, index = _top(queries, jnp.asarray(chunk), min(count, len(chunk)))
        best = np.concatenate([best, found], axis=1)
        label = np.concatenate([label, training.labels[start:][np.asarray(index)]], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(best, order, axis=1)
        label = np.take_along_axis(label, order, axis=1)
    return best, label


@functools.partial(jax.jit, static_argnames="count")
def _top(queries: jax.Array, keys: jax.Array, count: int) -> Any:
    return jax.lax.top_k(jnp.matmul(queries, keys.T, precision="highest"), count)


def _votes(
    similarity: np.ndarray, label: np.ndarray, temperature: float, classes: int
) -> np.ndarray:
    """float64 [B, classes]: the votes for each class, in units of the nearest neighbor's."""
    weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(label), classes))
    np.add.at(votes, (np.arange(len(label))[:, None], label), weight)
    return votes


def extract(
    encoder: ViT, params: Any, batches: Iterable[Batch], mesh: Mesh, pooling: Pooling
) -> Labeled:
    """Features of every image, in order, on every process; padding is left out.

    Args:
      pooling: the `class` token, or the `mean` of the patch tokens.

    Raises UserError for another pooling and for images without labels.
    """
    if pooling not in get_args(Pooling):
        raise UserError(f"--pooling {pooling!r}{nearest(pooling, get_args(Pooling))}")

    def pooled(params: Any, batch: Batch) -> Any:
        pixels = normalize(unit_range(batch.image))
        found: Any = encoder.apply({"params": params}, pixels)
        tokens = found.tokens
        feature = tokens[:, 0] if pooling == "class" else tokens[:, 1:].mean(1)
        return unit(feature), batch.label, batch.weight

    program = jax.jit(pooled, out_shardings=replicated(mesh))
    params = jax.device_put(params, replicated(mesh))
    features, labels = [], []
    for batch in batches:
        feature, label, weight = fetch(program(params, put_batch(mesh, batch)))
        features.append(feature[weight > 0])
        labels.append(label[weight > 0])
    found = Labeled(np.concatenate(features), np.concatenate(labels))
    if (found.labels < 0).any():
        raise UserError("images without labels: nearest neighbors vote for classes")
    return found
