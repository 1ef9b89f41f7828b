"""Pictures of original, masked and reconstructed images."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from occinv.data.batch import Batch
from occinv.evaluators.psnr import reconstruct, reconstructing
from occinv.objectives.base import Objective


class Triple(NamedTuple):
    """Three pictures of one image, uint8 [H, W, 3]. See `Reconstruction`."""

    original: np.ndarray
    masked: np.ndarray
    reconstructed: np.ndarray


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
