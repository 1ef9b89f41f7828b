"""Color augmentation on the device, with the arithmetic of torchvision's ColorJitter.

Pixels are float32 in [0, 1]. Every random draw is an image's own, by its own key.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from occinv.rng import split

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow converts to gray


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """SimSiam's color augmentation: random brightness, contrast, saturation, hue, then gray.

    Attributes:
      brightness, contrast, saturation: factors are drawn from [1 - s, 1 + s].
      hue: shifts are drawn from [-s, s], in turns of the color circle.
      probability: of jittering an image at all.
      gray: probability of then making it gray.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8
    gray: float = 0.2

    def __call__(self, keys: jax.Array, pixels: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [0, 1], jittered by `keys` [B]; the same shape and range."""
        return jax.vmap(self._one)(keys, pixels)

    def _one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        order_key, amount_key, apply_key, gray_key = jax.random.split(key, 4)
        strength = jnp.array([self.brightness, self.contrast, self.saturation, self.hue])
        amount = jax.random.uniform(amount_key, (4,), minval=-strength, maxval=strength)
        operations = (
            lambda x: blend(x, jnp.zeros_like(x), 1 + amount[0]),
            lambda x: blend(x, gray(x).mean() * jnp.ones_like(x), 1 + amount[1]),
            lambda x: blend(x, gray(x), 1 + amount[2]),
            lambda x: shift_hue(x, amount[3]),
        )
        jittered = image
        for operation in jax.random.permutation(order_key, 4):  # torchvision shuffles them, too
            jittered = jax.lax.switch(operation, operations, jittered)
        image = jnp.where(jax.random.bernoulli(apply_key, self.probability), jittered, image)
        return jnp.where(jax.random.bernoulli(gray_key, self.gray), gray(image), image)


@dataclasses.dataclass(frozen=True)
class Appearance:
    """The official augmentation of MoCo v3 and DINO after cropping: jitter, gray, blur, solarize.

    Attributes:
      color: the jitter.
      blur, solarize: their probabilities.
      sigma: blurs are drawn from this range, in pixels whatever the image's size.
    """

    color: ColorJitter = ColorJitter(saturation=0.2)
    blur: float = 0.0
    solarize: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)

    def __call__(self, keys: jax.Array, pixels: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [0, 1], changed by `keys` [B]; the same shape and range."""
        color_keys, blur_keys, sigma_keys, solarize_keys = split(keys, 4)
        pixels = self.color(color_keys, pixels)
        if self.blur:
            sigma = draw(sigma_keys, *self.sigma)
            chosen = draw(blur_keys) < self.blur
            pixels = jnp.where(each(chosen), gaussian_blur(pixels, sigma), pixels)
        if self.solarize:
            chosen = draw(solarize_keys) < self.solarize
            pixels = jnp.where(each(chosen), solarize(pixels), pixels)
        return pixels


def draw(keys: jax.Array, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """float32 [B], uniform in [low, high), from `keys` [B]."""
    return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


def each(of_image: jax.Array) -> jax.Array:
    """[B] as [B, 1, 1, 1]."""
    return of_image[:, None, None, None]


def gaussian_blur(pixels: jax.Array, sigma: jax.Array, radius: int = 6) -> jax.Array:
    """[B, H, W, 3] blurred by a Gaussian of `sigma` [B] pixels; border pixels repeat outwards.

    Two products with a band matrix of each image, which accelerators do faster than a convolution
    with another kernel for each. `radius` cuts the kernel off: three of the largest sigma.
    """

    def band(side: int) -> jax.Array:  # [B, side, side]: what each pixel of a line gives to each
        offset = jnp.arange(-radius, radius + 1)
        distance = offset.astype(jnp.float32) / sigma[:, None]  # [B, 2 · radius + 1]
        weight = jax.nn.softmax(-0.5 * distance**2)
        source = jnp.clip(jnp.arange(side)[:, None] + offset, 0, side - 1)
        return jnp.einsum("bo,iok->bik", weight, jax.nn.one_hot(source, side))

    height, width = pixels.shape[1:3]
    rows = jnp.einsum("bik,bkwc->biwc", band(height), pixels)
    return jnp.einsum("bjk,bikc->bijc", band(width), rows)


def solarize(pixels: jax.Array) -> jax.Array:
    """[..., 3] with values from 128 of 255 upwards inverted, as Pillow does."""
    return jnp.where(pixels < 127.5 / 255, pixels, 1 - pixels)


def gray(pixels: jax.Array) -> jax.Array:
    """The luma of [..., 3] in all three channels."""
    luma = (pixels * jnp.array(LUMA)).sum(-1, keepdims=True)
    return jnp.broadcast_to(luma, pixels.shape)


def blend(pixels: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """`other` + factor · (pixels - other), clipped to [0, 1]: 1 gives `pixels`, 0 `other`."""
    return jnp.clip(other + factor * (pixels - other), 0, 1)


def shift_hue(pixels: jax.Array, turns: jax.Array) -> jax.Array:
    """[..., 3] in [0, 1] with hue moved by a fraction of the color circle."""
    red, green, blue = jnp.moveaxis(pixels, -1, 0)
    value, chroma = pixels.max(-1), pixels.max(-1) - pixels.min(-1)
    over = 1 / jnp.where(chroma > 0, chroma, 1)
    # In sixths of the circle. Nothing asks for `red == value`, as the textbooks do: XLA may compute
    # one number in two places and round it differently. Where two channels tie, both cases agree.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * over,
        jnp.where(green >= blue, 2 + (blue - red) * over, 4 + (red - green) * over),
    )
    away = (hue[..., None] + 6 * turns + jnp.array([5.0, 3.0, 1.0])) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(away, 4 - away), 0, 1)
