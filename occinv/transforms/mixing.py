"""Mixup, CutMix and random erasing on the device: what fine-tuning adds to a crop.

The official MAE takes them from timm. There one draw serves the batch (mixing); here every image
draws by its own key, as everything on the device does. An image's partner is the one as far from
the batch's end as it is from the start, as in timm.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from occinv.rng import split


class Mixed(NamedTuple):
    """Images, each with a part of its partner."""

    pixels: jax.Array  # float32 [B, H, W, 3]
    share: jax.Array  # float32 [B], of the image itself; the partner has the rest


def mix(
    keys: jax.Array, pixels: jax.Array, mixup: float, cutmix: float, switch: float = 0.5
) -> Mixed:
    """Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019) with the batch in reverse.

    Args:
      keys: key array [B].
      pixels: float32 [B, H, W, 3].
      mixup, cutmix: α of the Beta(α, α) that the share is drawn from; 0: not this one.
      switch: the probability of CutMix where both are on.
    """
    if not (mixup or cutmix):
        return Mixed(pixels, jnp.ones(len(pixels)))
    choice_keys, blend_keys, cut_keys, place_keys = split(keys, 4)
    partner = pixels[::-1]
    if mixup:
        share = beta(blend_keys, mixup)
        blended = partner + share[:, None, None, None] * (pixels - partner)
        blend = Mixed(blended, share)
    if cutmix:
        inside = cut_box(place_keys, beta(cut_keys, cutmix), pixels.shape[1:3])
        cut = Mixed(
            jnp.where(inside[..., None], partner, pixels),
            1 - inside.astype(jnp.float32).mean((1, 2)),
        )
    if not cutmix:
        return blend
    if not mixup:
        return cut
    chosen = jax.vmap(lambda key: jax.random.bernoulli(key, switch))(choice_keys)
    return Mixed(
        jnp.where(chosen[:, None, None, None], cut.pixels, blend.pixels),
        jnp.where(chosen, cut.share, blend.share),
    )


def beta(keys: jax.Array, alpha: float) -> jax.Array:
    """float32 [B] from Beta(alpha, alpha), by each key of [B]."""
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)


def cut_box(keys: jax.Array, share: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """bool [B, H, W]: a box around a uniform center with 1 - share [B] of the area.

    What would lie outside the image is cut off, so the box may be smaller than asked.
    """
    center = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    side = jnp.sqrt(1 - share)

    def along(axis: int) -> jax.Array:  # bool [B, length]
        length = size[axis]
        half = (length * side).astype(jnp.int32) // 2
        middle = (length * center[:, axis]).astype(jnp.int32)
        place = jnp.arange(length)[None]
        return (place >= (middle - half)[:, None]) & (place < (middle + half)[:, None])

    return along(0)[:, :, None] & along(1)[:, None, :]


def erase(
    keys: jax.Array,
    pixels: jax.Array,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: float = 0.3,
) -> jax.Array:
    """A box of normal noise in each image with this probability (Zhong et al. 2020).

    The behavior is that of timm's RandomErasing with mode `pixel` and one box: its area is uniform
    in `area` (a fraction of the image), its aspect ratio log-uniform in [aspect, 1 / aspect], and
    the first of ten tries that fits is taken.

    Args:
      keys: key array [B].
      pixels: float32 [B, H, W, 3], normalized: noise of deviation 1 is as bright as an image.
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

    box_keys, noise_keys = split(keys, 2)
    noise = jax.vmap(lambda key: jax.random.normal(key, pixels.shape[1:]))(noise_keys)
    return jnp.where(jax.vmap(box)(box_keys)[..., None], noise, pixels)
