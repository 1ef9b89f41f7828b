"""Weighted nearest neighbors: how well frozen features separate classes, without training.

The protocol of the official DINO (`eval_knn.py`): features of the training images under the central
crop, scaled to length 1. Each of the k nearest neighbors of a validation image votes for its own
label with weight exp(cosine / τ).
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
from occinv.losses.contrastive import unit
from occinv.models.vit import ViT
from occinv.parallel import fetch, put_batch, replicated
from occinv.schema import UserError, nearest
from occinv.transforms.view import unit_range

Pooling = Literal["class", "mean"]
QUERIES = 1024  # validation images compared at once
CHUNK = 65536  # training images that they are compared with at once, which bounds the memory


class Labeled(NamedTuple):
    """Features with their labels.

    Attributes:
      features: float32 [n, D], of length 1.
      labels: int32 [n].
    """

    features: np.ndarray
    labels: np.ndarray


class Knn(NamedTuple):
    """The accuracy of nearest neighbors, and its settings.

    Attributes:
      top1, top5: The share of images whose label has most votes, or is among the best five.
      neighbors, temperature: k and τ.
      pooling: As in `extract`.
      images, training_images: The numbers of validation and of training images.
    """

    top1: float
    top5: float
    neighbors: int
    temperature: float
    pooling: Pooling
    images: int
    training_images: int


def knn(
    training: Labeled, validation: Labeled, neighbors: int, temperature: float
) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy of the votes of training images on validation images.

    Raises:
      UserError: `neighbors` is not in 1 to the number of training images, or `temperature` not
        above 0.
    """
    count = len(training.labels)
    if not 1 <= neighbors <= count:
        raise UserError(
            f"--neighbors {neighbors}, expected 1 to {count}, the number of training images"
        )
    if not temperature > 0:
        raise UserError(f"--temperature {temperature}, expected a number above 0")
    classes = int(max(training.labels.max(), validation.labels.max())) + 1
    hits = np.zeros(2)
    for start in range(0, len(validation.labels), QUERIES):
        part = slice(start, start + QUERIES)
        similarity, label = _nearest(training, jnp.asarray(validation.features[part]), neighbors)
        votes = _votes(similarity, label, temperature, classes)
        for_own = np.take_along_axis(votes, validation.labels[part, None], 1)
        # Classes with equally many votes rank first, so that a class without votes never counts.
        better = (votes >= for_own).sum(1) - 1
        hits += [((better < first) & (for_own[:, 0] > 0)).sum() for first in (1, 5)]
    top1, top5 = (hits / len(validation.labels)).tolist()
    return top1, top5


def _nearest(training: Labeled, queries: jax.Array, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and labels of the `count` nearest neighbors of each query: [B, count]."""
    similarities, labels = [], []
    for start in range(0, len(training.labels), CHUNK):
        chunk = jnp.asarray(training.features[start : start + CHUNK])
        found, index = _top(queries, chunk, min(count, len(chunk)))
        similarities.append(np.asarray(found))
        labels.append(training.labels[start:][np.asarray(index)])
    similarity, label = (np.concatenate(parts, axis=1) for parts in (similarities, labels))
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(similarity, order, 1), np.take_along_axis(label, order, 1)


@functools.partial(jax.jit, static_argnames="count")
def _top(queries: jax.Array, keys: jax.Array, count: int) -> Any:
    return jax.lax.top_k(jnp.matmul(queries, keys.T, precision="highest"), count)


def _votes(
    similarity: np.ndarray, label: np.ndarray, temperature: float, classes: int
) -> np.ndarray:
    """Return the votes for each class in units of the nearest neighbor's: float64 [B, classes]."""
    weight = np.exp((similarity - similarity[:, :1]).astype(np.float64) / temperature)
    votes = np.zeros((len(label), classes))
    np.add.at(votes, (np.arange(len(label))[:, None], label), weight)
    return votes


def extract(
    encoder: ViT, params: Any, batches: Iterable[Batch], mesh: Mesh, pooling: Pooling
) -> Labeled:
    """Return features of every image, in order, on every process. Padding is left out.

    Args:
      encoder: f.
      params: The parameters of f alone.
      batches: This process's rows of the global batches.
      mesh: The devices that share a batch.
      pooling: The `class` token, or the `mean` of the patch tokens.

    Raises:
      UserError: The pooling is unknown, or images have no labels.
    """
    if pooling not in get_args(Pooling):
        raise UserError(f"unknown --pooling {pooling!r}{nearest(pooling, get_args(Pooling))}")

    def pooled(params: Any, batch: Batch) -> Any:
        found: Any = encoder.apply({"params": params}, unit_range(batch.image))
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
        raise UserError(
            "the images have no labels, but nearest neighbors vote for classes; use a folder with "
            "a sub-folder for each class"
        )
    return found
