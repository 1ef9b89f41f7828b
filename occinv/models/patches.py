"""Images to patches and back."""

from __future__ import annotations

import jax

from occinv.size import Grid, Size, sides


def patchify(images: jax.Array, patch_size: Size) -> jax.Array:
    """Cut [B, H, W, C] into patches [B, N, h·w·C] in raster order.

    A patch is flattened by row, column and channel, as `patchify` in models_mae.py. H and W are
    multiples of the patch's height h and width w.
    """
    batch, height, width, channels = images.shape
    h, w = sides(patch_size)
    rows, columns = height // h, width // w
    grid = images.reshape(batch, rows, h, columns, w, channels)
    return grid.swapaxes(2, 3).reshape(batch, rows * columns, h * w * channels)


def unpatchify(patches: jax.Array, patch_size: Size, grid: Grid) -> jax.Array:
    """Invert `patchify` for images of rows x columns patches: [B, N, h·w·C] to [B, H, W, C]."""
    (h, w), (rows, columns) = sides(patch_size), grid
    split = patches.reshape(len(patches), rows, columns, h, w, -1)
    return split.swapaxes(2, 3).reshape(len(patches), rows * h, columns * w, split.shape[-1])
