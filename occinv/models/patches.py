"""Images to patches and back."""

from __future__ import annotations

import jax


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cut [B, H, W, C] into patches [B, N, p·p·C] in raster order.

    A patch is flattened by row, column and channel, as `patchify` in models_mae.py. H and W are
    multiples of `patch_size`.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return grid.swapaxes(2, 3).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(patches: jax.Array, patch_size: int) -> jax.Array:
    """Invert `patchify` for square images of 3 channels: [B, N, p·p·3] to [B, H, W, 3]."""
    batch, count, _ = patches.shape
    side = int(count**0.5)
    grid = patches.reshape(batch, side, side, patch_size, patch_size, 3)
    return grid.swapaxes(2, 3).reshape(batch, side * patch_size, side * patch_size, 3)
