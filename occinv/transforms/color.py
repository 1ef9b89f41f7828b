"""Color augmentation on the device, with the arithmetic of torchvision's ColorJitter.

Pixels are float32 in [0, 1]. Every image is changed by draws of its own PRNG key. Images without
RGB channels have no hue, and the mean of their channels is their gray: a gray image itself.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le

from occinv.rng import split, uniform
from occinv.schema import Probability

Sigma = Annotated[float, Ge(0.01), Le(100)]

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow's conversion to gray


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """SimSiam's color augmentation: random brightness, contrast, saturation and hue, then gray.

    Attributes:
      brightness: The factor of the brightness is drawn from [1 - b, 1 + b].
      contrast: The factor of the contrast is drawn from [1 - c, 1 + c].
      saturation: The factor of the saturation is drawn from [1 - s, 1 + s].
      hue: The shift of the hue is drawn from [-h, h], in turns of the color circle.
      probability: The probability that an image is jittered.
      gray: The probability that an image is then made gray.
    """

    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: Probability = 0.4
    hue: Annotated[float, Ge(0), Le(0.5)] = 0.1
    probability: Probability = 0.8
    gray: Probability = 0.2

    def __call__(self, rng: jax.Array, pixels: jax.Array) -> jax.Array:
        """Jitter float32 [B, H, W, C] in [0, 1] by key array [B]; shape and range stay."""
        return jax.vmap(self._one)(rng, pixels)

    def _one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        order_key, amount_key, apply_key, gray_key = jax.random.split(key, 4)
        strength = jnp.array([self.brightness, self.contrast, self.saturation, self.hue])
        amount = jax.random.uniform(amount_key, (4,), minval=-strength, maxval=strength)
        operations = (
            lambda x: blend(x, jnp.zeros_like(x), 1 + amount[0]),
            lambda x: blend(x, to_gray(x).mean() * jnp.ones_like(x), 1 + amount[1]),
            lambda x: blend(x, to_gray(x), 1 + amount[2]),
            lambda x: shift_hue(x, amount[3]),
        )
        jittered = image
        for operation in jax.random.permutation(order_key, 4):  # torchvision shuffles them, too
            jittered = jax.lax.switch(operation, operations, jittered)
        image = jnp.where(jax.random.bernoulli(apply_key, self.probability), jittered, image)
        return jnp.where(jax.random.bernoulli(gray_key, self.gray), to_gray(image), image)


@dataclasses.dataclass(frozen=True)
class Appearance:
    """The augmentation of MoCo v3 and DINO after cropping: color jitter, gray, blur, solarize.

    Attributes:
      color: The jitter.
      blur: The probability that an image is blurred.
      solarize: The probability that an image is solarized.
      sigma: The range that a blur's sigma is drawn from, in pixels at any image size.
    """

    color: ColorJitter = ColorJitter(saturation=0.2)
    blur: Probability = 0.0
    solarize: Probability = 0.0
    sigma: tuple[Sigma, Sigma] = (0.1, 2.0)

    def __call__(self, rng: jax.Array, pixels: jax.Array) -> jax.Array:
        """Change float32 [B, H, W, C] in [0, 1] by key array [B]; shape and range stay."""
        color_rng, blur_rng, sigma_rng, solarize_rng = split(rng, 4)
        pixels = self.color(color_rng, pixels)
        if self.blur:
            sigma = uniform(sigma_rng, *self.sigma)
            chosen = (uniform(blur_rng) < self.blur)[:, None, None, None]
            pixels = jnp.where(chosen, gaussian_blur(pixels, sigma), pixels)
        if self.solarize:
            chosen = (uniform(solarize_rng) < self.solarize)[:, None, None, None]
            pixels = jnp.where(chosen, solarize(pixels), pixels)
        return pixels


def gaussian_blur(pixels: jax.Array, sigma: jax.Array, radius: int = 6) -> jax.Array:
    """Blur [B, H, W, C] by a Gaussian of `sigma` [B] pixels; border pixels repeat outward.

    Each image is multiplied by two band matrices. On accelerators this is faster than a convolution
    with a different kernel for each image. `radius` truncates the kernel at three times the largest
    sigma.
    """

    def band(side: int) -> jax.Array:  # [B, side, side]: weight of each pixel of a line in each
        offset = jnp.arange(-radius, radius + 1)
        distance = offset.astype(jnp.float32) / sigma[:, None]  # [B, 2 · radius + 1]
        weight = jax.nn.softmax(-0.5 * distance**2)
        source = jnp.clip(jnp.arange(side)[:, None] + offset, 0, side - 1)
        return jnp.einsum("bo,iok->bik", weight, jax.nn.one_hot(source, side))

    height, width = pixels.shape[1:3]
    rows = jnp.einsum("bik,bkwc->biwc", band(height), pixels)
    return jnp.einsum("bjk,bikc->bijc", band(width), rows)


def solarize(pixels: jax.Array) -> jax.Array:
    """Invert the values of [..., C] from 128 of 255 upward, as Pillow does."""
    return jnp.where(pixels < 127.5 / 255, pixels, 1 - pixels)


def to_gray(pixels: jax.Array) -> jax.Array:
    """Return the luma of [..., 3] in all channels; of another number of channels, their mean."""
    if pixels.shape[-1] != 3:
        return jnp.broadcast_to(pixels.mean(-1, keepdims=True), pixels.shape)
    luma = (pixels * jnp.array(LUMA)).sum(-1, keepdims=True)
    return jnp.broadcast_to(luma, pixels.shape)


def blend(pixels: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """Return other + factor · (pixels - other), clipped to [0, 1]."""
    return jnp.clip(other + factor * (pixels - other), 0, 1)


def shift_hue(pixels: jax.Array, turns: jax.Array) -> jax.Array:
    """Shift the hue of [..., 3] in [0, 1] by a fraction of the color circle; others stay."""
    if pixels.shape[-1] != 3:
        return pixels
    red, green, blue = jnp.moveaxis(pixels, -1, 0)
    value, chroma = pixels.max(-1), pixels.max(-1) - pixels.min(-1)
    over = 1 / jnp.where(chroma > 0, chroma, 1)
    # In sixths of the circle. Textbooks compare `red == value`. XLA may compute one number in two
    # places and round it differently, so nothing here compares floats for equality. Where two
    # channels tie, both cases agree.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * over,
        jnp.where(green >= blue, 2 + (blue - red) * over, 4 + (red - green) * over),
    )
    away = (hue[..., None] + 6 * turns + jnp.array([5.0, 3.0, 1.0])) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(away, 4 - away), 0, 1)
