"""Pictures of original, masked and reconstructed images."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from occinv.data.batch import Batch
from occinv.data.source import Source
from occinv.evaluators.base import Evaluator, Result, Subject, option
from occinv.evaluators.psnr import reconstruct, reconstructing
from occinv.objectives.base import Objective
from occinv.schema import Count, Seed


class Triple(NamedTuple):
    """Three pictures of one image, uint8 [H, W, 3]. See `Reconstruction`."""

    original: np.ndarray
    masked: np.ndarray
    reconstructed: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstructions(Evaluator):
    """Pictures of original, masked and reconstructed images."""

    num_images: Count | None = option(8, "Draw N images, spread over the source.")
    seed: Seed = option(0, "Draw the removed patches from this seed.")

    def check(self, subject: Subject) -> None:
        reconstructing(subject.objective)

    def measure(self, subject: Subject, images: Source) -> Result:
        batch = subject.one_batch(images)
        rows = triples(subject.objective, subject.params, batch, self.seed)
        return Result({}, f"{len(rows)} images", pictures=[row._asdict() for row in rows])


def triples(objective: Objective, params: Any, batch: Batch, seed: int = 0) -> list[Triple]:
    """Return a triple for each image of `batch` that is not padding.

    The masks are those of `reconstruction_psnr` with the same seed.

    Raises:
      UserError: The objective does not reconstruct pixels.
    """
    program = jax.jit(functools.partial(reconstruct, reconstructing(objective)))
    shown, _ = program(params, batch, jax.random.key(seed))
    pictures = [np.rint(np.asarray(x) * 255).astype(np.uint8) for x in shown]
    rows = np.flatnonzero(np.asarray(batch.weight) > 0)
    return [Triple(*(picture[row] for picture in pictures)) for row in rows]
