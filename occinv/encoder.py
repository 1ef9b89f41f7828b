"""A trained encoder as a plain object: images in, NumPy features out."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from occinv.data.crop import center_crop
from occinv.data.decode import decode_rgb, to_rgb, with_channels
from occinv.models.vit import ViT
from occinv.schema import UserError
from occinv.train import workdir
from occinv.transforms.masking import visible_ids

Picture = str | Path | Image.Image | np.ndarray  # one image
Pictures = np.ndarray | Iterable[Picture]
BATCH_SIZE = 64


class LoadedEncoder:
    """f with its parameters.

    Its methods take `images` in one of two forms:

    - An array [B, H, W, C] of the encoder's `image_shape`: uint8, or floats in [0, 1].
    - Any iterable of images, which is read batch by batch. Paths and PIL images pass `preprocess`;
      arrays [H, W, C] are used as they are.

    A method computes `batch_size` images at a time. The last batch is padded, so that each method
    compiles one program, or one for each number of visible patches.

    Attributes:
      encoder, params: The module, and its parameters on the first device.
      image_size, patch_size: Pixels a side, or (height, width).
      image_shape: H, W and C of an image.
      num_patches, width, depth: N, D, and the number of transformer blocks.
      resize_ratio: As in `data.resize_ratio`, for `preprocess`.

    Example:
      >>> import occinv
      >>> from skimage.data import astronaut
      >>> encoder = occinv.load_encoder("runs/mae")
      >>> encoder.image_size, encoder.num_patches, encoder.width, encoder.depth
      (16, 16, 16, 1)
      >>> encoder.preprocess(astronaut()).shape
      (16, 16, 3)
    """

    def __init__(self, encoder: ViT, params: Any, resize_ratio: float = 0.875) -> None:
        self.encoder = encoder
        self.params = jax.device_put(params)
        self.image_size = encoder.image_size
        self.patch_size = encoder.patch_size
        self.image_shape = encoder.image_shape
        self.num_patches = encoder.num_patches
        self.width = encoder.width
        self.depth = encoder.depth
        self.resize_ratio = resize_ratio

    def preprocess(self, image: Picture) -> np.ndarray:
        """Decode, resize and crop an image as in the run's own evaluation.

        Args:
          image: A path, a PIL image, or an array uint8 [H, W, C] of any size. For an encoder of
            gray images, RGB is converted to gray.

        Returns:
          uint8 of `image_shape`; three channels are RGB.

        Raises:
          FileNotFoundError: There is no such file.
          ValueError: The file is not an image, or the image has another shape or dtype.

        Example:
          >>> import occinv
          >>> from PIL import Image
          >>> encoder = occinv.load_encoder("runs/mae")
          >>> encoder.preprocess(Image.new("L", (300, 200))).shape
          (16, 16, 3)
        """
        if isinstance(image, np.ndarray):
            pixels = image
        elif isinstance(image, Image.Image):
            pixels = to_rgb(ImageOps.exif_transpose(image))
        else:
            encoded = Path(image).expanduser().read_bytes()
            try:
                pixels = decode_rgb(encoded, str(image))
            except Exception as error:  # for bad bytes Pillow raises many types
                raise ValueError(f"cannot read {image}: {error}; expected an image") from error
        channels = self.image_shape[2]
        if pixels.dtype == np.uint8:
            with contextlib.suppress(UserError):  # another number of channels
                pixels = with_channels(pixels, channels)
                return center_crop(pixels, self.image_size, self.resize_ratio)
        raise ValueError(
            f"image is {pixels.dtype}{list(pixels.shape)}, expected uint8[H, W, {channels}]"
        )

    def features(
        self,
        images: Pictures,
        visible: np.ndarray | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Return the class token, then the patch tokens in raster order: float32 [B, 1 + N, D].

        The tokens have passed the encoder's final norm. A classifier of the mean patch token has
        none; its norm follows the mean.

        Args:
          images: An array or an iterable of images; see the class.
          visible: bool [B, N], True for visible patches, 1 to N in each image; None: all. Features
            of patches that are not visible are zeros. These patches are dropped, or replaced by the
            mask token if the encoder was trained with one (C-MAE).
          batch_size: The number of images that are computed at a time.

        Raises:
          ValueError: Shape, dtype or range is wrong, there is no image, or an image has no visible
            patch.

        Example:
          >>> import numpy as np, occinv
          >>> encoder = occinv.load_encoder("runs/mae")
          >>> encoder.features(np.zeros((3, 16, 16, 3), np.uint8)).shape
          (3, 17, 16)
        """
        return self._run(images, visible, None, batch_size)[0]

    def intermediate(
        self,
        images: Pictures,
        layers: Sequence[int] | None = None,
        visible: np.ndarray | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> np.ndarray:
        """Return the residual stream after some blocks, float32 [L, B, 1 + N, D], without norm.

        Args:
          images, visible, batch_size: As in `features`.
          layers: The L blocks: 1 is the first, -1 the last; None: all.

        Raises:
          ValueError: As in `features`, there is no such block, or `layers` is one number.

        Example:
          >>> import numpy as np, occinv
          >>> encoder = occinv.load_encoder("runs/mae")
          >>> encoder.intermediate(np.zeros((3, 16, 16, 3), np.uint8), layers=[-1]).shape
          (1, 3, 17, 16)
        """
        chosen = range(1, self.depth + 1) if layers is None else layers
        if not isinstance(chosen, Iterable):  # in timm an int is a number of blocks
            raise ValueError(f"layers={layers!r}, expected several blocks, such as [{layers}]")
        return self._run(images, visible, tuple(map(self._index, chosen)), batch_size)

    def attention(
        self, images: Pictures, layer: int = -1, *, batch_size: int = BATCH_SIZE
    ) -> np.ndarray:
        """Return the attention of the class token to the patches: float32 [B, heads, N].

        It is softmax(q · k / √d), as in DINO's `get_last_selfattention`. The sum over N is less
        than 1; the rest is the class token's attention to itself.

        Args:
          images, batch_size: As in `features`.
          layer: The block: 1 is the first, -1 the last.

        Raises:
          ValueError: As in `features`, or there is no such block.

        Example:
          >>> import numpy as np, occinv
          >>> encoder = occinv.load_encoder("runs/mae")
          >>> encoder.attention(np.zeros((3, 16, 16, 3), np.uint8)).shape
          (3, 2, 16)
        """
        from occinv.models.class_attention import class_attention

        index, found, size = self._index(layer), [], 0
        for pixels in self._batches(images, batch_size):
            size = size or len(pixels)
            weights = class_attention(self.encoder, self.params, _pad(pixels, size))
            found.append(np.asarray(weights[index])[: len(pixels)])
        return np.concatenate(found)

    def _index(self, layer: int) -> int:
        """Return the index of a block that is counted from 1, or from -1 backward."""
        is_int = isinstance(layer, int | np.integer)
        if not is_int or not 1 <= abs(layer) <= self.depth:
            shown = layer if is_int else f"of type {type(layer).__name__}"
            raise ValueError(
                f"layer {shown}, expected 1 to {self.depth}, or -1 (the last) to -{self.depth}"
            )
        return layer - 1 if layer > 0 else self.depth + layer

    def _run(
        self,
        images: Pictures,
        visible: np.ndarray | None,
        layers: tuple[int, ...] | None,
        batch_size: int,
    ) -> np.ndarray:
        """Return float32 [L, B, 1 + N, D]: of `layers`, or of the tokens (L = 1)."""
        found, first, size = [], 0, 0
        if visible is not None and np.ndim(visible) != 2:
            expected = f"bool[B, {self.num_patches}], True for visible patches"
            raise ValueError(f"visible has {np.ndim(visible)} dimensions, expected {expected}")
        for pixels in self._batches(images, batch_size):
            size, last = size or len(pixels), first + len(pixels)
            rows = None if visible is None else self._visible(visible, first, last)
            found.append(self._batch(pixels, rows, layers, size))
            first = last
        if visible is not None and len(visible) != first:
            raise ValueError(f"visible has {len(visible)} rows, expected {first}, one an image")
        return np.concatenate(found, axis=1)

    def _batch(
        self,
        pixels: np.ndarray,
        visible: np.ndarray | None,
        layers: tuple[int, ...] | None,
        size: int,
    ) -> np.ndarray:
        """Return float32 [L, b, 1 + N, D] of b images, computed as `size` images."""

        def encode(rows: Any, kept: int | None) -> np.ndarray:
            seen = None if visible is None else _pad(visible[rows], size)
            padded = _pad(pixels[rows], size)
            return np.asarray(_encode(self.encoder, self.params, padded, seen, kept, layers))

        if visible is None:
            return encode(slice(None), None)[:, : len(pixels)]
        levels = 1 if layers is None else len(layers)
        result = np.zeros((levels, len(pixels), 1 + self.num_patches, self.width), np.float32)
        shown = np.insert(visible, 0, True, axis=1)  # the class token is always visible
        counts = visible.sum(1)
        for kept in np.unique(counts).tolist():  # a compiled program has a fixed number of patches
            rows = np.flatnonzero(counts == kept)
            image, place = np.nonzero(shown[rows])
            found = encode(rows, kept)[:, : len(rows)]
            result[:, rows[image], place] = found.reshape(levels, -1, self.width)
        return result

    def _batches(self, images: Pictures, batch_size: int) -> Iterator[np.ndarray]:
        """Yield float32 [b, H, W, C] in [0, 1]; b is `batch_size`, or less in the last batch."""
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}, expected 1 or more")
        if isinstance(images, (str, Path, Image.Image)):
            raise ValueError(f"images is one image, {images!r}; expected several, such as [image]")
        if hasattr(images, "__array__"):
            pixels = self._pixels(np.asarray(images))
            batches = (pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size))
        else:
            each = iter(images)
            chunks = iter(lambda: list(itertools.islice(each, batch_size)), [])
            batches = (np.concatenate([self._one(image) for image in chunk]) for chunk in chunks)
        first = next(batches, None)
        if first is None:
            raise ValueError("images is empty, expected 1 or more")
        yield first
        yield from batches

    def _one(self, image: Picture) -> np.ndarray:
        """Return one image of an iterable as float32 [1, H, W, C]."""
        is_array = hasattr(image, "__array__") and not isinstance(image, Image.Image)
        return self._pixels(np.asarray(image if is_array else self.preprocess(image))[None])

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(
                f"images of shape {list(images.shape)}, expected [B, {expected}]; resize and crop "
                "them to the encoder's size"
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

    def _visible(self, visible: np.ndarray, first: int, last: int) -> np.ndarray:
        """Return the rows of the images `first` to `last` - 1."""
        rows, batch = np.asarray(visible)[first:last], last - first
        if rows.dtype != bool or rows.shape != (batch, self.num_patches):
            raise ValueError(
                f"visible is {rows.dtype}{list(rows.shape)}, expected "
                f"bool[{batch}, {self.num_patches}], True for visible patches"
            )
        if not rows.any(1).all():
            empty = first + int(np.flatnonzero(~rows.any(1))[0])
            raise ValueError(f"visible leaves image {empty} without a patch, expected 1 or more")
        return rows


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    """Repeat the first row after the last one, up to `size` rows."""
    return np.concatenate([rows, rows[:1].repeat(size - len(rows), axis=0)])


@functools.partial(jax.jit, static_argnames=("encoder", "kept", "layers"))
def _encode(
    encoder: ViT,
    params: Any,
    pixels: jax.Array,
    visible: jax.Array | None,
    kept: int | None,
    layers: tuple[int, ...] | None,
) -> jax.Array:
    """Return the class token and the `kept` visible patches of each image: [L, B, 1 + kept, D]."""
    found: Any = encoder.apply({"params": params}, pixels, visible, kept)
    values = found.tokens[None]
    if layers is not None:
        values = found.blocks[jnp.asarray(layers)].astype(jnp.float32)
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

    Example:
      >>> import numpy as np, occinv
      >>> encoder = occinv.load_encoder("runs/mae")
      >>> images = np.zeros((2, *encoder.image_shape), np.uint8)
      >>> encoder.features(images)[:, 0].shape  # the class token
      (2, 16)
    """
    run = workdir.load_run(path, step)
    data = run.experiment.data
    return LoadedEncoder(run.objective.networks.encoder, run.params["encoder"], data.resize_ratio)
