"""Picture files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_pictures(
    folder: Path, pictures: Sequence[Mapping[str, np.ndarray]], scale: int = 1
) -> None:
    """Write `0_NAME.png`, …, `1_NAME.png`, … into `folder`.

    Args:
      folder: Created if it does not exist.
      pictures: The pictures of each image by name, uint8 [height, width, 3]. All are enlarged to
        the size of the image's first picture.
      scale: A factor on that size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, named in enumerate(pictures):
        height, width = next(iter(named.values())).shape[:2]
        for name, picture in named.items():
            resized(picture, width * scale, height * scale).save(folder / f"{number}_{name}.png")


def resized(picture: np.ndarray, width: int, height: int) -> Image.Image:
    """Resize uint8 [H, W, 3] without interpolation."""
    return Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
