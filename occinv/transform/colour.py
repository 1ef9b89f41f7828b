"""Colour augmentation on the device, with the arithmetic of torchvision's ColorJitter.

Pixels are float32 in [0, 1]. Every random draw is an image's own, by its own key.
"""

from __future__ import annotations

import dataclasses

import dm_pix
import jax
import jax.numpy as jnp

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow converts to grey


@dataclasses.dataclass(frozen=True)
class ColourJitter:
    """SimSiam's colour augmentation: random brightness, contrast, saturation, hue, then grey.

    Attributes:
      brightness, contrast, saturation: factors are drawn from [1 - s, 1 + s].
      hue: shifts are drawn from [-s, s], in turns of the colour circle.
      probability: of jittering an image at all.
      grey: probability of then making it grey.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 0.8
    grey: float = 0.2

    def __call__(self, keys: jax.Array, pixels: jax.Array) -> jax.Array:
        """float32 [B, H, W, 3] in [0, 1], jittered by `keys` [B]; the same shape and range."""
        return jax.vmap(self._one)(keys, pixels)

    def _one(self, key: jax.Array, image: jax.Array) -> jax.Array:
        order_key, amount_key, apply_key, grey_key = jax.random.split(key, 4)
        strength = jnp.array([self.brightness, self.contrast, self.saturation, self.hue])
        amount = jax.random.uniform(amount_key, (4,), minval=-strength, maxval=strength)
        operations = (
            lambda x: blend(x, jnp.zeros_like(x), 1 + amount[0]),
            lambda x: blend(x, grey(x).mean() * jnp.ones_like(x), 1 + amount[1]),
            lambda x: blend(x, grey(x), 1 + amount[2]),
            lambda x: shift_hue(x, amount[3]),
        )
        jittered = image
        for operation in jax.random.permutation(order_key, 4):  # torchvision shuffles them, too
            jittered = jax.lax.switch(operation, operations, jittered)
        image = jnp.where(jax.random.bernoulli(apply_key, self.probability), jittered, image)
        return jnp.where(jax.random.bernoulli(grey_key, self.grey), grey(image), image)


def grey(pixels: jax.Array) -> jax.Array:
    """The luma of [..., 3] in all three channels."""
    luma = (pixels * jnp.array(LUMA)).sum(-1, keepdims=True)
    return jnp.broadcast_to(luma, pixels.shape)


def blend(pixels: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    """`other` + factor · (pixels - other), clipped to [0, 1]: 1 gives `pixels`, 0 `other`."""
    return jnp.clip(other + factor * (pixels - other), 0, 1)


def shift_hue(pixels: jax.Array, turns: jax.Array) -> jax.Array:
    """[..., 3] with hue moved by a fraction of the colour circle, clipped to [0, 1]."""
    with jax.numpy_dtype_promotion("standard"):  # dm-pix adds booleans to floats
        return jnp.clip(dm_pix.adjust_hue(pixels, turns), 0, 1)
