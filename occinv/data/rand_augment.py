"""RandAugment on the host with Pillow: two random operations per image, for training on labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# MAE fine-tunes with rand-m9-mstd0.5-inc1 of timm 0.3.2 (timm/data/auto_augment.py), bicubic.
MAGNITUDE, DEVIATION, COUNT, PROBABILITY = 9.0, 0.5, 2, 0.5
FILL = (124, 116, 104)  # of pixels from outside the image: ImageNet's mean, round(255 * mean)

# (image, level in [0, 1], sign -1 or 1) -> image of the same size. An operation is weakest at
# level 0. Some operations ignore the level or the sign.
Operation = Callable[[Image.Image, float, int], Image.Image]


def _posterize(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Keep the highest 4, 3, 2 or 1 bits; at level 1 none, which is a black image, as in timm."""
    # ImageOps.posterize of Pillow 13 refuses to keep no bits.
    bits = 4 - int(4 * level)
    return image.point([value >> 8 - bits << 8 - bits for value in range(256)] * 3)


def _solarize_add(image: Image.Image, level: float, sign: int) -> Image.Image:
    """Brighten the dark half of the values. 127 + 110 is below 256, so nothing is clipped."""
    add = int(110 * level)
    return image.point([value + add if value < 128 else value for value in range(256)] * 3)


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Move from the image (factor 1) toward its degenerate (factor 0) or away from it."""

    def operation(image: Image.Image, level: float, sign: int) -> Image.Image:
        return enhancer(image).enhance(1 + sign * 0.9 * level)

    return operation


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Show at (x, y) the pixel of (ax + by + c, dx + ey + f), for `matrix` (a, b, c, d, e, f)."""
    affine, bicubic = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return image.transform(image.size, affine, matrix, resample=bicubic, fillcolor=FILL)


def _rotate(image: Image.Image, level: float, sign: int) -> Image.Image:
    return image.rotate(sign * 30 * level, resample=Image.Resampling.BICUBIC, fillcolor=FILL)


# The names are timm's, without the suffix "Increasing".
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, sign: ImageOps.equalize(image),
    "Invert": lambda image, level, sign: ImageOps.invert(image),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - int(256 * level)),
    "SolarizeAdd": _solarize_add,
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": lambda image, level, sign: _affine(image, 1, sign * 0.3 * level, 0, 0, 1, 0),
    "ShearY": lambda image, level, sign: _affine(image, 1, 0, 0, sign * 0.3 * level, 1, 0),
    "TranslateXRel": lambda image, level, sign: _affine(
        image, 1, 0, sign * 0.45 * level * image.width, 0, 1, 0
    ),
    "TranslateYRel": lambda image, level, sign: _affine(
        image, 1, 0, 0, 0, 1, sign * 0.45 * level * image.height
    ),
}


def rand_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an RGB image after COUNT random operations, each applied with PROBABILITY.

    The operations are drawn uniformly with replacement. The level of each is drawn from a normal
    distribution around MAGNITUDE, clipped to [0, 10] and divided by 10; both signs are equally
    likely.
    """
    operations = tuple(OPERATIONS.values())
    for _ in range(COUNT):
        operation = operations[int(rng.random() * len(operations))]
        if rng.random() >= PROBABILITY:
            continue
        level = min(max(rng.normal(MAGNITUDE, DEVIATION), 0.0), 10.0) / 10
        sign = 1 if rng.random() < 0.5 else -1
        image = operation(image, level, sign)
    return image
