"""Mixup, CutMix and random erasing on the device, as in fine-tuning.

The official MAE uses timm's. timm draws one mixing share for the whole batch; here every image
draws its own by its own key, like everything on the device. As in timm, an image is mixed with its
partner, the image at its position in the reversed batch.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from occinv.rng import split
from occinv.transforms.view import denormalize


class Mixed(NamedTuple):
    """Images that are each mixed with their partner.

    Attributes:
      pixels: float32 [B, H, W, C].
      share: float32 [B], the share of the image itself; the rest is its partner's.
    """

    pixels: jax.Array
    share: jax.Array


def mix(
    rng: jax.Array, pixels: jax.Array, mixup: float, cutmix: float, switch: float = 0.5
) -> Mixed:
    """Apply Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) with the reversed batch.

    Args:
      rng: key array [B].
      pixels: float32 [B, H, W, C].
      mixup, cutmix: α of the Beta(α, α) that the share is drawn from; 0 turns it off.
      switch: The probability of CutMix where both are on.
    """
    if not (mixup or cutmix):
        return Mixed(pixels, jnp.ones(len(pixels)))
    choice_rng, blend_rng, cut_rng, place_rng = split(rng, 4)
    partner = pixels[::-1]
    if mixup:
        share = beta(blend_rng, mixup)
        blended = partner + share[:, None, None, None] * (pixels - partner)
        blend = Mixed(blended, share)
    if cutmix:
        inside = cut_box(place_rng, beta(cut_rng, cutmix), pixels.shape[1:3])
        cut = Mixed(
            jnp.where(inside[..., None], partner, pixels),
            1 - inside.astype(jnp.float32).mean((1, 2)),
        )
    if not cutmix:
        return blend
    if not mixup:
        return cut
    chosen = jax.vmap(lambda key: jax.random.bernoulli(key, switch))(choice_rng)
    return Mixed(
        jnp.where(chosen[:, None, None, None], cut.pixels, blend.pixels),
        jnp.where(chosen, cut.share, blend.share),
    )


def beta(rng: jax.Array, alpha: float) -> jax.Array:
    """Draw float32 [B] from Beta(alpha, alpha), by key array [B]."""
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(rng)


def cut_box(rng: jax.Array, share: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Draw bool [B, H, W]: a box around a uniform center with 1 - share [B] of the area.

    The box is clipped at the border of the image, so it may be smaller.
    """
    center = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(rng)
    side = jnp.sqrt(1 - share)

    def along(axis: int) -> jax.Array:  # bool [B, length]
        length = size[axis]
        half = (length * side).astype(jnp.int32) // 2
        middle = (length * center[:, axis]).astype(jnp.int32)
        place = jnp.arange(length)[None]
        return (place >= (middle - half)[:, None]) & (place < (middle + half)[:, None])

    return along(0)[:, :, None] & along(1)[:, None, :]


def erase(
    rng: jax.Array,
    pixels: jax.Array,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: float = 0.3,
) -> jax.Array:
    """Replace a box of each image by noise, with this probability (Zhong et al. 2020).

    It behaves as timm's RandomErasing with mode `pixel` and one box: the box's area is uniform in
    `area` (a fraction of the image), its aspect ratio log-uniform in [aspect, 1 / aspect], and the
    first of ten draws that fits is used. The noise is normal in normalized pixels.

    Args:
      rng: key array [B].
      pixels: float32 [B, H, W, C] in [0, 1]; the noise exceeds this range.
      probability: The probability for each image.
      area: The range of the box's area.
      aspect: The smallest aspect ratio.
    """
    if not probability:
        return pixels
    height, width = pixels.shape[1:3]

    def box(key: jax.Array) -> jax.Array:  # bool [H, W]
        apply_key, area_key, aspect_key, place_key = jax.random.split(key, 4)
        share = jax.random.uniform(area_key, (10,), minval=area[0], maxval=area[1])
        log_ratio = jnp.abs(jnp.log(aspect))
        ratio = jnp.exp(jax.random.uniform(aspect_key, (10,), minval=-log_ratio, maxval=log_ratio))
        heights = jnp.round(jnp.sqrt(height * width * share * ratio)).astype(jnp.int32)
        widths = jnp.round(jnp.sqrt(height * width * share / ratio)).astype(jnp.int32)
        fits = (heights < height) & (widths < width)
        first = jnp.argmax(fits)
        h, w = heights[first], widths[first]
        down, right = jax.random.uniform(place_key, (2,))
        top = jnp.floor(down * (height - h + 1).astype(jnp.float32)).astype(jnp.int32)
        left = jnp.floor(right * (width - w + 1).astype(jnp.float32)).astype(jnp.int32)
        row, column = jnp.arange(height)[:, None], jnp.arange(width)[None]
        inside = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
        return inside & fits.any() & jax.random.bernoulli(apply_key, probability)

    box_rng, noise_rng = split(rng, 2)
    noise = jax.vmap(lambda key: jax.random.normal(key, pixels.shape[1:]))(noise_rng)
    return jnp.where(jax.vmap(box)(box_rng)[..., None], denormalize(noise), pixels)
