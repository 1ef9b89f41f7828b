"""Picture files: a grid of labeled pictures, and every picture by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from occinv.schema import UserError

NEAREST = Image.Resampling.NEAREST
GAP, LINE = 4, 18  # pixels between pictures, and the height of a line of text


def save_pictures(
    path: Path,
    rows: Sequence[Mapping[str, np.ndarray]],
    scale: int = 1,
    captions: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write a grid to `path`, and `0_NAME.png`, …, `1_NAME.png`, … to a folder beside it.

    Args:
      path: The grid. The folder has the same name without the suffix.
      rows: The pictures of each image by name, uint8 [height, width, C]. All are resized without
        interpolation to the size of the first, times `scale`. Without three channels, their mean
        is drawn in gray.
      scale: A factor on that size.
      captions: For each image the texts below its pictures, by name.

    Raises:
      UserError: There is no image, or the scale is below 1.
    """
    if not rows or scale < 1:
        raise UserError(f"{len(rows)} images at scale={scale}, expected 1 or more of each")
    height, width = (scale * side for side in next(iter(rows[0].values())).shape[:2])
    font = ImageFont.load_default(size=12)
    texts = [*rows[0], *(text for named in captions for text in named.values())]
    column = max(width, *(round(font.getlength(text)) for text in texts)) + GAP
    line = height + GAP + (LINE if captions else 0)
    size = (GAP + len(rows[0]) * column, LINE + GAP + len(rows) * line)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        top = LINE + GAP + number * line
        for place, (name, picture) in enumerate(row.items()):
            left = GAP + place * column
            enlarged = Image.fromarray(_rgb(picture)).resize((width, height), NEAREST)
            _save(enlarged, folder / f"{number}_{name}.png")
            grid.paste(enlarged, (left, top))
            if number == 0:
                draw.text((left, GAP), name, fill="black", font=font)
            if captions:
                below = captions[number].get(name, "")
                draw.text((left, top + height), below, fill="black", font=font)
    _save(grid, path)


def _rgb(picture: np.ndarray) -> np.ndarray:
    """Return [H, W, C] as [H, W, 3]: as it is, or the mean of its channels in gray."""
    if picture.shape[2] == 3:
        return picture
    return np.rint(picture.mean(2, keepdims=True)).astype(np.uint8).repeat(3, axis=2)


def _save(picture: Image.Image, path: Path) -> None:
    with path.open("wb") as file:  # a path in a bucket, too
        picture.save(file, format="PNG")
