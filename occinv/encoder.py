"""A trained encoder as a plain object: NumPy images in, NumPy features out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from occinv.models.vit import ViT
from occinv.train import workdir
from occinv.transforms.masking import visible_ids

Level = Literal["tokens", "blocks"]


class LoadedEncoder:
    """f with its parameters.

    Attributes:
      encoder, params: The module, and its parameters on the first device.
      image_size, patch_size: Pixels a side.
      num_patches, width, depth: N, D, and the number of transformer blocks.
    """

    def __init__(self, encoder: ViT, params: Any) -> None:
        self.encoder = encoder
        self.params = jax.device_put(params)
        self.image_size = encoder.image_size
        self.patch_size = encoder.patch_size
        self.num_patches = encoder.num_patches
        self.width = encoder.width
        self.depth = encoder.depth

    def features(self, images: np.ndarray, visible: np.ndarray | None = None) -> np.ndarray:
        """Return the class token, then the patch tokens in raster order: float32 [B, 1 + N, D].

        The tokens have passed the encoder's final norm. A classifier of the mean patch token has
        none; its norm follows the mean.

        Args:
          images: uint8 [B, H, W, 3], or floats in [0, 1], of the encoder's image size.
          visible: bool [B, N], True for visible patches, 1 to N in each image; None: all. Features
            of patches that are not visible are zeros. These patches are dropped, or replaced by the
            mask token if the encoder was trained with one (C-MAE).

        Raises:
          ValueError: Shape, dtype or range is wrong, or an image has no visible patch.
        """
        return self._run(images, visible, "tokens")[0]

    def blocks(self, images: np.ndarray, visible: np.ndarray | None = None) -> np.ndarray:
        """Return the residual stream after each block, float32 [depth, B, 1 + N, D].

        Arguments and errors are those of `features`.
        """
        return self._run(images, visible, "blocks")

    def _run(self, images: np.ndarray, visible: np.ndarray | None, level: Level) -> np.ndarray:
        """Return float32 [L, B, 1 + N, D], with L = 1 for `tokens` and the depth for `blocks`."""
        pixels = self._pixels(images)
        if visible is None:
            return np.array(_encode(self.encoder, self.params, pixels, None, None, level))
        visible = self._visible(visible, len(pixels))
        levels = 1 if level == "tokens" else self.depth
        result = np.zeros((levels, len(pixels), 1 + self.num_patches, self.width), np.float32)
        shown = np.insert(visible, 0, True, axis=1)  # the class token is always visible
        counts = visible.sum(1)
        for kept in np.unique(counts).tolist():  # a compiled program has a fixed number of patches
            rows = np.flatnonzero(counts == kept)
            found = _encode(self.encoder, self.params, pixels[rows], visible[rows], kept, level)
            image, place = np.nonzero(shown[rows])
            result[:, rows[image], place] = np.asarray(found).reshape(levels, -1, self.width)
        return result

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        size = self.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images of shape {list(images.shape)}, expected [B, {size}, {size}, 3]; resize "
                "and crop them to the encoder's size"
            )
        if images.dtype == np.uint8:
            return images.astype(np.float32) / np.float32(255)
        if images.dtype.kind != "f":
            raise ValueError(f"images of dtype {images.dtype}, expected uint8, or floats in [0, 1]")
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(
                f"images with values from {images.min()} to {images.max()}, expected floats in "
                "[0, 1]; the encoder normalizes them itself"
            )
        return images.astype(np.float32)

    def _visible(self, visible: np.ndarray, batch: int) -> np.ndarray:
        visible = np.asarray(visible)
        if visible.dtype != bool or visible.shape != (batch, self.num_patches):
            raise ValueError(
                f"visible is {visible.dtype}{list(visible.shape)}, expected "
                f"bool[{batch}, {self.num_patches}], True for visible patches"
            )
        if not visible.any(1).all():
            empty = int(np.flatnonzero(~visible.any(1))[0])
            raise ValueError(f"visible leaves image {empty} without a patch, expected 1 or more")
        return visible


@functools.partial(jax.jit, static_argnames=("encoder", "kept", "level"))
def _encode(
    encoder: ViT,
    params: Any,
    pixels: jax.Array,
    visible: jax.Array | None,
    kept: int | None,
    level: Level,
) -> jax.Array:
    """Return the class token and the `kept` visible patches of each image: [L, B, 1 + kept, D]."""
    found: Any = encoder.apply({"params": params}, pixels, visible, kept)
    values = found.tokens[None] if level == "tokens" else found.blocks.astype(jnp.float32)
    if encoder.mask_token and visible is not None and kept is not None:
        # Removed patches have features too; leave them out.
        ids = jnp.pad(1 + visible_ids(visible, kept), ((0, 0), (1, 0)))  # the class token is 0
        values = jnp.take_along_axis(values, ids[None, :, :, None], axis=2)
    return values


def load_encoder(path: str | Path, step: int | None = None) -> LoadedEncoder:
    """Load the encoder of a run, at its newest good checkpoint or at `step`.

    Args:
      path: A workdir, its `checkpoints` folder, or one step in it.
      step: The exact step; None: the newest.

    Raises:
      UserError: There is no such run, or it cannot be read.
    """
    run = workdir.load_run(path, step)
    return LoadedEncoder(run.objective.networks.encoder, run.params["encoder"])
