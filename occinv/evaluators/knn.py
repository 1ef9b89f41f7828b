"""Weighted nearest neighbors: how well frozen features separate classes, without training.

The protocol of the official DINO (`eval_knn.py`): features of the training images under the central
crop, scaled to length 1. Each of the k nearest neighbors of an image votes for its own label with
weight exp(cosine / τ). An image is never its own neighbor: where there are no validation images,
this is leave-one-out on the training images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from occinv.data.batch import Batch
from occinv.data.identity import digest, pack, rows_in
from occinv.data.source import Source
from occinv.evaluators.base import (
    Evaluator,
    Pooling,
    Result,
    Split,
    Subject,
    check_labels,
    option,
    token_of,
)
from occinv.losses.contrastive import unit
from occinv.models.vit import ViT
from occinv.parallel import fetch, put_batch, replicated
from occinv.schema import Count, Positive, UserError
from occinv.transforms.view import unit_range

QUERIES = 1024  # validation images compared at once
CHUNK = 65536  # training images that they are compared with at once, which bounds the memory


class Labeled(NamedTuple):
    """Features with their labels.

    Attributes:
      features: float32 [n, D], of length 1.
      labels: int32 [n].
      row: int64 [n], the row of each image in its source; unreadable images are missing.
    """

    features: np.ndarray
    labels: np.ndarray
    row: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knn(Evaluator):
    """Top-1 and top-5 accuracy of the votes of the nearest training images.

    The training images are those of the run's source, or of `source` if it is given, whose part for
    training must have the same classes.
    """

    neighbors: Count = option(20, "Number of neighbors.")
    temperature: Positive = option(0.07, "Temperature of the vote weights.")
    pooling: Literal["trained", "class", "mean"] = option(
        "trained",
        "Use the class token, the mean patch token, or the one that the objective trains.",
    )
    batch_size: Count = option(128, "Images in a batch of the encoder.")

    def check(self, subject: Subject) -> None:
        check_labels(subject, self.source)

    def measure(self, subject: Subject, images: Source, split: Split) -> Result:
        token = token_of(subject.objective) if self.pooling == "trained" else self.pooling
        known = subject.training_images(self.source)
        if tuple(known.classes) != tuple(images.classes):
            raise UserError(
                f"{known.name} and {images.name} have different classes; use a source with equal "
                "classes"
            )
        training, queries = (
            extract(subject, subject.batches(each, self.batch_size), token)
            for each in (known, images)
        )
        own = own_rows(training, queries, rows_in(images, known))
        hits = knn(training, queries, self.neighbors, self.temperature, own)
        top1, top5 = hits.mean(0).tolist()
        how = "leave-one-out on training images" if (own >= 0).any() else f"{len(hits)} images"
        text = (
            f"top-1 {top1:.1%}, top-5 {top5:.1%}, chance {1 / len(images.classes):.1%}, by "
            f"{self.neighbors} neighbors among {len(training.labels)} training images, "
            f"{token} token; {how}"
        )
        return Result(
            {"top1": top1, "top5": top5},
            text,
            details={"hits": pack(hits[:, 0], queries.row, len(images))},
            made={
                "token": token,
                "training_images": len(training.labels),
                "training_digest": digest(known),
                "leave_one_out": bool((own >= 0).any()),
            },
        )


def own_rows(training: Labeled, queries: Labeled, places: list[int]) -> np.ndarray:
    """Return the row of each query among the training features, -1 for none: int64 [n].

    `places` has the row of each image of the queries' source in the training source. Features of
    unreadable images are missing in both.
    """
    row_of = {int(place): row for row, place in enumerate(training.row)}
    return np.array([row_of.get(places[row], -1) for row in queries.row], np.int64)


def knn(
    training: Labeled,
    queries: Labeled,
    neighbors: int,
    temperature: float,
    own: np.ndarray | None = None,
) -> np.ndarray:
    """Return whether each query's label has most votes, or is among the best five: bool [n, 2].

    Args:
      training, queries: Features and labels.
      neighbors, temperature: k and τ.
      own: int64 [n], the row of each query in `training`, which does not vote; -1: none.

    Raises:
      UserError: `neighbors` is not in 1 to the number of other training images.
    """
    own = np.full(len(queries.labels), -1) if own is None else own
    excluded = bool((own >= 0).any())
    count = len(training.labels) - excluded
    if not 1 <= neighbors <= count:
        raise UserError(
            f"neighbors={neighbors}, expected 1 to {count}, the number of "
            f"{'other ' * excluded}training images"
        )
    classes = int(max(training.labels.max(), queries.labels.max())) + 1
    hits = []
    for start in range(0, len(queries.labels), QUERIES):
        part = slice(start, start + QUERIES)
        similarity, label = _nearest(
            training, jnp.asarray(queries.features[part]), neighbors, own[part]
        )
        votes = _votes(similarity, label, temperature, classes)
        for_own = np.take_along_axis(votes, queries.labels[part, None], 1)
        # A tie is a miss, and a class without votes never counts.
        better = (votes >= for_own).sum(1) - 1
        hits += [[(better < first) & (for_own[:, 0] > 0) for first in (1, 5)]]
    return np.concatenate([np.stack(each, 1) for each in hits])


def _nearest(
    training: Labeled, queries: jax.Array, count: int, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and labels of the `count` nearest neighbors of each query: [B, count]."""
    similarities, rows = [], []
    excluded = int((own >= 0).any())
    for start in range(0, len(training.labels), CHUNK):
        chunk = jnp.asarray(training.features[start : start + CHUNK])
        found, index = _top(queries, chunk, min(count + excluded, len(chunk)))
        similarities.append(np.array(found))
        rows.append(start + np.asarray(index))
    similarity, row = (np.concatenate(parts, axis=1) for parts in (similarities, rows))
    similarity[row == own[:, None]] = -np.inf
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    similarity, row = (np.take_along_axis(each, order, 1) for each in (similarity, row))
    return similarity, training.labels[row]


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


def extract(subject: Subject, batches: Iterable[Batch], token: Pooling) -> Labeled:
    """Return features of every image, in order, on every process. Padding is left out.

    Args:
      subject: The model.
      batches: This process's rows of the global batches.
      token: The `class` token, or the `mean` of the patch tokens.

    Raises:
      UserError: Images have no labels.
    """
    mesh = subject.mesh
    params = jax.device_put(subject.params["encoder"], replicated(mesh))
    features, labels, rows, start = [], [], [], 0
    for batch in batches:
        found = _pooled(params, put_batch(mesh, batch), subject.encoder, token, mesh)
        feature, label, weight = fetch(found)
        features.append(feature[weight > 0])
        labels.append(label[weight > 0])
        rows.append(start + np.flatnonzero(weight > 0))
        start += len(weight)
    every = Labeled(*map(np.concatenate, (features, labels, rows)))
    if (every.labels < 0).any():
        raise UserError(
            "the images have no labels, but this evaluator needs classes; use a folder with a "
            "sub-folder for each class"
        )
    return every


@functools.partial(jax.jit, static_argnames=("encoder", "token", "mesh"))
def _pooled(
    params: Any, batch: Batch, encoder: ViT, token: Pooling, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    found: Any = encoder.apply({"params": params}, unit_range(batch.image))
    feature = found.tokens[:, 0] if token == "class" else found.tokens[:, 1:].mean(1)
    result = unit(feature.astype(jnp.float32)), batch.label, batch.weight
    return jax.lax.with_sharding_constraint(result, replicated(mesh))
