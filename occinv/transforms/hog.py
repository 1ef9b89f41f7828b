"""Histograms of oriented gradients (HOG), the features that MaskFeat predicts."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

BINS = 9  # orientations, of 20° each


def hog(pixels: jax.Array, cell_size: int) -> jax.Array:
    """Return the HOG of each channel in each square cell of an image.

    Gradients are those of the 3 × 3 Sobel filters, with the border reflected. Each pixel votes for
    the bin of its orientation, of nine in 180°, with the length of its gradient. The bins of a cell
    and channel are scaled to length 1 (`HOGLayerC` of SlowFast's operators.py). A horizontal edge
    is at 0°, the start of bin 0, and a vertical edge in bin 4.

    Pixels are rounded to their 256 levels, so that gradients are exact integers and rounding never
    moves a horizontal edge into bin 8.

    Args:
      pixels: float32 [B, H, W, C] in [0, 1].
      cell_size: Pixels a side of a cell; H and W are multiples of it.

    Returns:
      float32 [B, H / cell_size, W / cell_size, C · 9], by channel, then by bin. A cell of one color
      is zero.
    """
    batch, height, width, channels = pixels.shape
    levels = jnp.pad(jnp.round(255 * pixels), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    smooth_rows = levels[:, :-2] + 2 * levels[:, 1:-1] + levels[:, 2:]
    smooth_columns = levels[:, :, :-2] + 2 * levels[:, :, 1:-1] + levels[:, :, 2:]
    across = smooth_rows[:, :, 2:] - smooth_rows[:, :, :-2]
    down = smooth_columns[:, 2:] - smooth_columns[:, :-2]
    bins = jnp.floor(jnp.arctan2(across, down) * (BINS / math.pi)).astype(jnp.int32) % BINS
    bins = jnp.where(across == 0, 0, bins)  # arctan2 may round 180° down
    votes = jnp.hypot(across, down)[..., None] * jax.nn.one_hot(bins, BINS)
    rows, columns = height // cell_size, width // cell_size
    cells = votes.reshape(batch, rows, cell_size, columns, cell_size, channels, BINS)
    histograms = cells.sum((2, 4))
    length = jnp.linalg.norm(histograms, axis=-1, keepdims=True)
    unit = histograms / jnp.maximum(length, 1e-12)
    return unit.reshape(batch, rows, columns, channels * BINS)
