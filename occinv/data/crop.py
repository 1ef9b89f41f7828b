"""Crops on the host, with Pillow. Only RandAugment is random after them and not on the device."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image


class Crop(NamedTuple):
    """A further random crop that an objective asks of each image."""

    size: int  # pixels a side
    scale: tuple[float, float] | None = None  # of area; None: that of the first crop


def _as_image(image: Image.Image | np.ndarray) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)


def _crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the crop that torchvision's RandomResizedCrop would draw."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        # Only rng.random: it is by far the fastest way to one number.
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.random() * (width - w + 1))
            top = int(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    # No luck in ten tries: the largest central crop whose aspect is allowed.
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_resized_crop(
    image: Image.Image | np.ndarray,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> np.ndarray:
    """A random part of the image, resized to a square and perhaps mirrored.

    The behaviour is that of torchvision's RandomResizedCrop and RandomHorizontalFlip on PIL
    images: the part's area is uniform in `scale` (a fraction of the image's), its aspect ratio
    log-uniform in `ratio`, ten tries, then the largest central crop of an allowed aspect; bicubic
    with antialiasing. With scale (1, 1) and flip 0, an image that is already size x size comes
    back unchanged.

    image: RGB image or uint8 [H, W, 3].  Returns: uint8 [size, size, 3].
    """
    image = _as_image(image)
    box = _crop_box(*image.size, rng, scale, ratio)
    mirrored = rng.random() < flip
    # Crop first: resize(box=...) would let the filter look at pixels outside the box.
    image = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def center_crop(
    image: Image.Image | np.ndarray, size: int, resize_ratio: float = 0.875
) -> np.ndarray:
    """The middle of the image at a fixed size, for evaluation.

    The short side is resized (bicubic, antialiased) to int(size / resize_ratio), 256 for the usual
    224 and 0.875, and the central square of `size` is cut out; 1.0 keeps the whole short side.
    The behaviour is that of MAE's util/datasets.py, so of torchvision's Resize and CenterCrop.

    image: RGB image or uint8 [H, W, 3].  Returns: uint8 [size, size, 3].
    Raises: ValueError when `resize_ratio` is not in (0, 1].
    """
    if not 0 < resize_ratio <= 1:
        raise ValueError(f"resize_ratio is {resize_ratio}, expected a number in (0, 1]")
    image = _as_image(image)
    short, shortest = int(size / resize_ratio), min(image.size)
    width, height = (short * side // shortest for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
