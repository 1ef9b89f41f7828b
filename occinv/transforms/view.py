"""View: the result of a transformation, an image and which of its patches are visible."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@struct.dataclass
class View:
    """T(x) for a batch.

    Attributes:
      pixels: float32 [B, H, W, C] in [0, 1]. The encoder normalizes them itself. Pixels of patches
        that are not visible are not read through this view, except as a reconstruction target.
      visible: bool [B, N], the paper's M: True where the patch is visible.
      kept: The number of visible patches in every image, known when the program is traced.
      share: float32 [B], the weight of the image's own label where it is mixed with its partner,
        the image at its position in the reversed batch. None: not mixed.
    """

    pixels: jax.Array
    visible: jax.Array
    kept: int = struct.field(pytree_node=False)
    share: jax.Array | None = None


def unit_range(image: jax.Array) -> jax.Array:
    """Convert uint8 [B, H, W, C] to float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255.0


def normalize(pixels: jax.Array) -> jax.Array:
    """Normalize float32 [..., C] in [0, 1] by ImageNet's mean and standard deviation.

    These are of RGB. Another number of channels is normalized to [-1, 1].
    """
    if pixels.shape[-1] != 3:
        return 2 * pixels - 1
    return (pixels - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def denormalize(pixels: jax.Array) -> jax.Array:
    """Invert `normalize`."""
    if pixels.shape[-1] != 3:
        return (pixels + 1) / 2
    return pixels * jnp.array(IMAGENET_STD) + jnp.array(IMAGENET_MEAN)


def whole(pixels: jax.Array, num_patches: int) -> View:
    """Return the identity view of `pixels` [B, H, W, C]: every patch is visible."""
    return View(pixels, jnp.ones((pixels.shape[0], num_patches), bool), num_patches)
