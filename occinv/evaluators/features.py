"""Features of labeled images, and the evaluators that classify by them."""

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
from occinv.data.identity import digest
from occinv.data.source import Source
from occinv.evaluators.base import Evaluator, Pooling, Subject, check_labels, option, token_of
from occinv.losses.contrastive import unit
from occinv.models.heads import pool
from occinv.models.vit import ViT
from occinv.parallel import fetch, put_batch, replicated
from occinv.schema import Count, UserError
from occinv.transforms.view import unit_range


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
class FeatureEvaluator(Evaluator):
    """An evaluator that classifies images by the features of training images.

    The training images are those of the run's source, or of `source` if it is given, whose part for
    training must have the same classes.
    """

    pooling: Literal["trained", "class", "mean"] = option(
        "trained",
        "Use the class token, the mean patch token, or the one that the objective trains.",
        is_protocol=False,  # `made` has the token
    )
    batch_size: Count = option(128, "Images in a batch of the encoder.", is_protocol=False)

    def check(self, subject: Subject) -> None:
        check_labels(subject, self.source)

    def training_images(self, subject: Subject, images: Source) -> Source:
        """Open the training images. Raises UserError if their classes are not those of `images`."""
        known = subject.training_images(self.source)
        if tuple(known.classes) != tuple(images.classes):
            raise UserError(
                f"{known.name} and {images.name} have different classes; use a source with equal "
                "classes"
            )
        return known

    def token(self, subject: Subject) -> Pooling:
        """The token that `pooling` means."""
        return token_of(subject.objective) if self.pooling == "trained" else self.pooling

    def extract(self, subject: Subject, images: Source) -> Labeled:
        """Return the features of images, as `extract`."""
        batches = subject.batches(images, self.batch_size)
        return extract(subject, batches, self.token(subject))

    def made(self, subject: Subject, known: Source, training: Labeled) -> dict[str, Any]:
        """The facts about the features that a record keeps."""
        return {
            "token": self.token(subject),
            "training_images": len(training.labels),
            "training_digest": digest(known),
        }


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
    feature = unit(pool(found.tokens, token).astype(jnp.float32))
    result = feature, batch.label, batch.weight
    return jax.lax.with_sharding_constraint(result, replicated(mesh))


def own_rows(training: Labeled, queries: Labeled, places: list[int]) -> np.ndarray:
    """Return the row of each query among the training features, -1 for none: int64 [n].

    `places` has the row of each image of the queries' source in the training source. Features of
    unreadable images are missing in both.
    """
    row_of = {int(place): row for row, place in enumerate(training.row)}
    return np.array([row_of.get(places[row], -1) for row in queries.row], np.int64)
