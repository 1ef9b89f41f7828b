"""Pictures of what a model believes lies under the removed patches."""

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
from occinv.evaluators.psnr import Reconstructs, reconstructing
from occinv.objectives.base import Objective
from occinv.objectives.mae import Reconstruction
from occinv.transforms.view import unit_range

GAP, HEADER = 4, 18  # pixels of the grid


class Triple(NamedTuple):
    """Three pictures of one image, uint8 [H, W, 3]."""

    original: np.ndarray
    masked: np.ndarray  # removed patches are gray
    reconstructed: np.ndarray  # visible patches are pasted


def triples(objective: Objective, params: Any, batch: Batch, seed: int = 0) -> list[Triple]:
    """A triple for each image of `batch` that is not padding, at the objective's mask ratio.

    Masks are those of `reconstruction_psnr` with the same seed: they follow from (seed, the image's
    index).

    Raises:
      UserError: the objective does not reconstruct pixels.
    """
    model = reconstructing(objective)
    shown = _show(params, batch, jax.random.key(seed), model)
    pictures = [np.rint(np.asarray(x) * 255).astype(np.uint8) for x in shown]
    rows = np.flatnonzero(np.asarray(batch.weight) > 0)
    return [Triple(*(picture[row] for picture in pictures)) for row in rows]


@functools.partial(jax.jit, static_argnames="model")
def _show(params: Any, batch: Batch, key: jax.Array, model: Reconstructs) -> Reconstruction:
    ratios = (model.mask_ratio,)
    (visible,), _ = draw_visible(key, batch.index, model.encoder.num_patches, ratios)
    return model.reconstruct(params, unit_range(batch.image), visible)


def save_grid(path: Path, triples: Sequence[Triple], scale: int = 1) -> None:
    """Writes one PNG: a line for each triple, its columns labeled, pixels `scale` times as big.

    Raises:
      ValueError: no triple, or a scale below 1.
    """
    if not triples or scale < 1:
        raise ValueError(f"{len(triples)} triples at scale {scale}, expected 1 or more of both")
    font = ImageFont.load_default(size=12)
    height, width = (scale * side for side in triples[0].original.shape[:2])
    # Small images need columns as broad as their labels.
    column = max(width, *(round(font.getlength(name)) for name in Triple._fields)) + GAP
    size = (GAP + len(Triple._fields) * column, HEADER + GAP + len(triples) * (height + GAP))
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    for place, name in enumerate(Triple._fields):
        left = GAP + place * column
        draw.text((left, GAP), name, fill="black", font=font)
        for line, triple in enumerate(triples):
            top = HEADER + GAP + line * (height + GAP)
            grid.paste(_enlarged(triple[place], scale), (left, top))
    grid.save(path)


def save_triples(folder: Path, triples: Sequence[Triple], scale: int = 1) -> list[dict[str, Path]]:
    """Writes `0_original.png`, `0_masked.png`, … into `folder`, which is made.

    Returns:
      For each triple its files by the name of the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, triple in enumerate(triples):
        files = {name: folder / f"{number}_{name}.png" for name in Triple._fields}
        for name, file in files.items():
            _enlarged(getattr(triple, name), scale).save(file)
        written.append(files)
    return written


def _enlarged(picture: np.ndarray, scale: int) -> Image.Image:
    height, width = picture.shape[:2]
    return Image.fromarray(picture).resize(
        (scale * width, scale * height), Image.Resampling.NEAREST
    )
