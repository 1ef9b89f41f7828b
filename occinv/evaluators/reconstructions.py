"""Pictures of original, masked and reconstructed images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from occinv.data.batch import Batch
from occinv.evaluators.occlusion import draw_visible
from occinv.evaluators.pictures import resized
from occinv.evaluators.psnr import ReconstructsMasked, reconstructing
from occinv.objectives.base import Objective, Reconstruction
from occinv.transforms.view import unit_range

GAP, HEADER = 4, 18  # pixels of the grid


class Triple(NamedTuple):
    """Three pictures of one image, uint8 [H, W, 3].

    Attributes:
      original: The image.
      masked: The image with gray patches where they were removed.
      reconstructed: The decoder's image; visible patches are pasted.
    """

    original: np.ndarray
    masked: np.ndarray
    reconstructed: np.ndarray


def triples(objective: Objective, params: Any, batch: Batch, seed: int = 0) -> list[Triple]:
    """Return a triple for each image of `batch` that is not padding.

    The masks are those of `reconstruction_psnr` with the same seed.

    Raises:
      UserError: The objective does not reconstruct pixels.
    """
    model = reconstructing(objective)
    shown = _reconstruct(params, batch, jax.random.key(seed), model)
    pictures = [np.rint(np.asarray(x) * 255).astype(np.uint8) for x in shown]
    rows = np.flatnonzero(np.asarray(batch.weight) > 0)
    return [Triple(*(picture[row] for picture in pictures)) for row in rows]


@functools.partial(jax.jit, static_argnames="model")
def _reconstruct(
    params: Any, batch: Batch, rng: jax.Array, model: ReconstructsMasked
) -> Reconstruction:
    ratios = (model.mask_ratio,)
    (visible,), _ = draw_visible(rng, batch.index, model.setting.encoder.num_patches, ratios)
    return model.reconstruct(params, unit_range(batch.image), visible)


def save_grid(path: Path, triples: Sequence[Triple], scale: int = 1) -> None:
    """Write one PNG with a row for each triple and labeled columns, pixels enlarged by `scale`.

    Raises:
      ValueError: There is no triple, or the scale is below 1.
    """
    if not triples or scale < 1:
        raise ValueError(f"{len(triples)} triples at scale {scale}, expected at least 1 of each")
    font = ImageFont.load_default(size=12)
    height, width = (scale * side for side in triples[0].original.shape[:2])
    # Columns of small images must be as wide as their labels.
    column = max(width, *(round(font.getlength(name)) for name in Triple._fields)) + GAP
    size = (GAP + len(Triple._fields) * column, HEADER + GAP + len(triples) * (height + GAP))
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for place, name in enumerate(Triple._fields):
        left = GAP + place * column
        draw.text((left, GAP), name, fill="black", font=font)
        for line, triple in enumerate(triples):
            top = HEADER + GAP + line * (height + GAP)
            grid.paste(resized(triple[place], width, height), (left, top))
    grid.save(path)
