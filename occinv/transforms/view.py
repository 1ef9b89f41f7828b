"""What a transformation returns: an image, and which of its patches can be seen."""

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
      pixels: float32 [B, H, W, 3], normalized by ImageNet's mean and deviation. Patches that are
        not visible may hold anything: nothing reads them through this view but as a target.
      visible: bool [B, N], the paper's M: True where the patch is seen.
      kept: how many patches of every image are visible, known when the program is traced.
      share: float32 [B], how much of each image is its own where it is mixed with the image in its
        place of the reversed batch; None: all of it.
    """

    pixels: jax.Array
    visible: jax.Array
    kept: int = struct.field(pytree_node=False)
    share: jax.Array | None = None


def unit_range(image: jax.Array) -> jax.Array:
    """uint8 [B, H, W, 3] to float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255.0


def normalize(pixels: jax.Array) -> jax.Array:
    """float32 [..., 3] in [0, 1] to ImageNet's mean 0 and deviation 1."""
    return (pixels - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)


def denormalize(pixels: jax.Array) -> jax.Array:
    """The inverse of `normalize`."""
    return pixels * jnp.array(IMAGENET_STD) + jnp.array(IMAGENET_MEAN)


def whole(pixels: jax.Array, num_patches: int) -> View:
    """The identity transformation: every patch of `pixels` [B, H, W, 3] is visible."""
    return View(pixels, jnp.ones((pixels.shape[0], num_patches), bool), num_patches)
