"""RandAugment on the host, with Pillow: two random operations an image, for training on labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# What a geometric operation moves in from outside: ImageNet's mean, round(255 * mean).
FILL = (124, 116, 104)

# (image, level in [0, 1], sign of -1 or 1) -> image of the same size. At level 0 an operation that
# has a level is at its weakest. Not every one has a level or a sign.
Operation = Callable[[Image.Image, float, int], Image.Image]


def _posterize(image: Image.Image, level: float, sign: int) -> Image.Image:
    """The highest four bits remain, three, two, one; at level 1 none, a black image, as in timm.

    Not by ImageOps.posterize: since Pillow 13 that refuses to keep none.
    """
    bits = 4 - int(4 * level)
    return image.point([value >> 8 - bits << 8 - bits for value in range(256)] * 3)


def _solarize_add(image: Image.Image, level: float, sign: int) -> Image.Image:
    """The dark half becomes lighter: 127 + 110 is below 256, so nothing is clipped."""
    add = int(110 * level)
    return image.point([value + add if value < 128 else value for value in range(256)] * 3)


def _enhance(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """Away from the image (factor 1) toward its degenerate (0), or as far the other way."""

    def operation(image: Image.Image, level: float, sign: int) -> Image.Image:
        return enhancer(image).enhance(1 + sign * 0.9 * level)

    return operation


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Shows at (x, y) what was at (ax + by + c, dx + ey + f), for `matrix` (a, b, c, d, e, f)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=Image.Resampling.BICUBIC,
        fillcolor=FILL,
    )


def _rotate(image: Image.Image, level: float, sign: int) -> Image.Image:
    return image.rotate(sign * 30 * level, resample=Image.Resampling.BICUBIC, fillcolor=FILL)


# The names are timm's, without the "Increasing" of those whose effect grows with the level.
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


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    magnitude: float = 9.0,
    deviation: float = 0.5,
    count: int = 2,
    probability: float = 0.5,
) -> Image.Image:
    """The image after `count` random operations, each of them applied with `probability`.

    The operations are drawn uniformly and with replacement. The level of each is drawn anew from a
    normal distribution around `magnitude`, clipped to [0, 10], and divided by 10; its sign is
    either with probability 1/2. The defaults are timm's `rand-m9-mstd0.5-inc1`
    (timm/data/auto_augment.py, version 0.3.2), with which MAE fine-tunes, on bicubic images.

    image: RGB, of any size.  Returns: RGB of that size; the very image if nothing was applied.
    """
    operations = tuple(OPERATIONS.values())
    for _ in range(count):
        operation = operations[int(rng.random() * len(operations))]
        if rng.random() >= probability:
            continue
        level = min(max(rng.normal(magnitude, deviation), 0.0), 10.0) / 10
        sign = 1 if rng.random() < 0.5 else -1
        image = operation(image, level, sign)
    return image
