"""Weighted nearest neighbors: how well frozen features separate classes, without training.

The protocol of the official DINO (`eval_knn.py`): features of the training images under the central
crop, scaled to length 1. Each of the k nearest neighbors of an image votes for its own label with
weight exp(cosine / τ). The feature is that of the token that the objective trains, which for DINO
is the class token, as in its protocol. An image is never its own neighbor: where there are no
validation images, this is leave-one-out on the training images.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occinv.data.identity import pack, rows_in
from occinv.data.source import Source
from occinv.evaluators.base import Result, Subject, option
from occinv.evaluators.features import FeatureEvaluator, Labeled, own_rows
from occinv.schema import Count, Positive, UserError

QUERIES = 1024  # validation images compared at once
CHUNK = 65536  # training images that they are compared with at once, which bounds the memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knn(FeatureEvaluator):
    """Top-1 and top-5 accuracy of the votes of the nearest training images.

    The training images are those of the run's source, or of `source` if it is given, whose part for
    training must have the same classes.
    """

    neighbors: Count = option(20, "Number of neighbors.")
    temperature: Positive = option(0.07, "Temperature of the vote weights.")

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_neighbors(self.neighbors, len(subject.training_images(self.source)))

    def measure(self, subject: Subject, images: Source) -> Result:
        known = self.training_images(subject, images)
        training, queries = (self.extract(subject, each) for each in (known, images))
        own = own_rows(training, queries, rows_in(images, known))
        hits = knn(training, queries, self.neighbors, self.temperature, own)
        top1, top5 = hits.mean(0).tolist()
        is_left_out = bool((own >= 0).any())
        how = "leave-one-out on training images" if is_left_out else f"{len(hits)} images"
        made = self.made(subject, known, training) | {"leave_one_out": is_left_out}
        text = (
            f"top-1 {top1:.1%}, top-5 {top5:.1%}, chance {1 / len(images.classes):.1%}, by "
            f"{self.neighbors} neighbors among {len(training.labels)} training images, "
            f"{made['token']} token; {how}"
        )
        details = {"hits": pack(hits[:, 0], queries.row, len(images))}
        return Result({"top1": top1, "top5": top5}, text, details, made)


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
    check_neighbors(neighbors, len(training.labels) - excluded, "other " * excluded)
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


def check_neighbors(neighbors: int, count: int, which: str = "") -> None:
    """Raise UserError unless `count` training images have so many neighbors."""
    if not 1 <= neighbors <= count:
        raise UserError(
            f"neighbors={neighbors}, expected 1 to {count}, the number of {which}training images"
        )


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
