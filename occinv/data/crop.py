"""Crops on the host. All later random changes are made on the device, except RandAugment."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from occinv.size import Size, sides

try:
    import cykooz_resizer as fast
except ImportError:  # there is no wheel for Linux on ARM
    fast = None

ASPECT_RATIO = (3 / 4, 4 / 3)  # range of width / height of a random crop, as in torchvision

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class Crop(NamedTuple):
    """A random crop: its size in pixels, and the range of its area as a fraction of the image."""

    size: Size
    scale: tuple[float, float] | None = None  # None is `data.crop_scale`


def crop_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw (left, top, right, bottom) in pixels as torchvision's RandomResizedCrop does.

    The area is uniform in `scale`, as a fraction of the image, and the aspect ratio is log-uniform
    in ASPECT_RATIO, whatever the size that the box is then resized to. After ten boxes that do not
    fit, the box is the largest central one.
    """
    low, high = math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1])
    for _ in range(10):
        # rng.random is by far the fastest way to draw one number.
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.random() * (width - w + 1))
            top = int(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ASPECT_RATIO[1])))
    h = min(height, max(1, round(width / ASPECT_RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class _Resizer(threading.local):
    """Resizes with vector instructions. Each thread has its own, because it keeps a work space."""

    def __init__(self) -> None:
        catmull_rom = fast.ResizeAlg.convolution(fast.FilterType.catmull_rom)  # Pillow's BICUBIC
        self._options = fast.ResizeOptions(catmull_rom, use_alpha=False)
        self._resize = fast.Resizer().resize

    def __call__(self, image: np.ndarray, width: int, height: int, box: Box) -> np.ndarray:
        rows, columns = image.shape[:2]
        left, top, right, bottom = box
        whole = fast.ImageData(columns, rows, fast.PixelType.U8x3, image.tobytes())
        narrow = fast.ImageData(width, rows, fast.PixelType.U8x3)
        resized = fast.ImageData(width, height, fast.PixelType.U8x3)
        # Resize the width first, in a call of its own, as Pillow up to 12 does. The other order
        # clips values outside 0..255 at another point: 20 levels of difference at sharp edges.
        self._options.crop_box = fast.CropBox(left, 0, right - left, rows)
        self._resize(whole, narrow, self._options)
        self._options.crop_box = fast.CropBox(0, top, width, bottom - top)
        self._resize(narrow, resized, self._options)
        return np.frombuffer(resized.get_buffer(), np.uint8).reshape(height, width, 3)


_resizer = _Resizer() if fast else None


def resize(image: np.ndarray, width: int, height: int, box: Box | None = None) -> np.ndarray:
    """Resize an image [H, W, C] as Pillow does (bicubic, antialiased), several times faster.

    Each value differs by at most 2 of 255 levels from Pillow up to 12, and by 0.02 in the mean.
    (Pillow 13 resizes the height before the width where that is faster, which shows at sharp
    edges.) Pillow itself resizes, in the same order, where the faster library has no wheel.

    Args:
      image: uint8 [H, W, C]; three channels are resized at a time.
      width: Width of the result.
      height: Height of the result.
      box: Part of the image to show, whose edges may lie between pixels; None is the whole image.
        The filter also reads pixels outside the box.

    Returns:
      uint8 [height, width, C].
    """
    if (channels := image.shape[2]) != 3:  # the resizers read three channels
        padded = np.pad(image, ((0, 0), (0, 0), (0, -channels % 3)))
        threes = [padded[..., i : i + 3] for i in range(0, channels, 3)]
        resized = [resize(three, width, height, box) for three in threes]
        return np.concatenate(resized, axis=2)[..., :channels]
    rows, columns = image.shape[:2]
    left, top, right, bottom = box = box or (0, 0, columns, rows)
    if _resizer is None:
        bicubic = Image.Resampling.BICUBIC
        narrow = Image.fromarray(image).resize((width, rows), bicubic, (left, 0, right, rows))
        return np.asarray(narrow.resize((width, height), bicubic, (0, top, width, bottom)))
    return _resizer(image, width, height, box)


def _mirrored(image: np.ndarray) -> np.ndarray:
    # Copy channel by channel: NumPy copies image[:, ::-1] six times more slowly.
    mirrored = np.empty_like(image)
    for channel in range(image.shape[2]):
        mirrored[..., channel] = image[:, ::-1, channel]
    return mirrored


class RandomCrops:
    """Random crops of one image, drawn before it is decoded.

    They equal torchvision's RandomResizedCrop and RandomHorizontalFlip on PIL images in
    distribution (bicubic, antialiased). The boxes depend on the stored size of the image and on
    `rng`, never on the size at which it is decoded.

    Args:
      crops: Sizes and scales.
      rng: Fresh generator.
      scale: Range of the area of a crop without a `scale` of its own.
      flip: Probability of mirroring a crop.
    """

    def __init__(
        self,
        crops: Sequence[Crop],
        rng: np.random.Generator,
        scale: tuple[float, float],
        flip: float,
    ):
        self._crops = crops
        self._rng = rng
        self._scale = scale
        self._flip = flip
        self._size: tuple[int, int] | None = None
        self._reduction = 1
        self._placed: list[tuple[Size, tuple[int, int, int, int], bool]] = []

    def reduction(self, width: int, height: int) -> int:
        """Draw the crops of an image of this size.

        Returns:
          The largest of 1, 2, 4 and 8 by which the image can shrink without enlarging a crop.
        """
        self._size = width, height
        spare = math.inf
        for crop in self._crops:
            box = crop_box(width, height, self._rng, crop.scale or self._scale)
            self._placed.append((crop.size, box, self._rng.random() < self._flip))
            h, w = sides(crop.size)
            spare = min(spare, (box[2] - box[0]) / w, (box[3] - box[1]) / h)
        self._reduction = max(factor for factor in (1, 2, 4, 8) if factor <= max(1, spare))
        return self._reduction

    def cut(self, image: np.ndarray) -> list[np.ndarray]:
        """Cut the crops [h, w, C] out of an image [H, W, C], decoded whole or reduced."""
        size = image.shape[1], image.shape[0]
        if self._size is None:
            self.reduction(*size)
        factor = 1 if size == self._size else self._reduction
        crops = []
        for crop_size, box, is_mirrored in self._placed:
            h, w = sides(crop_size)
            left, top, right, bottom = (edge / factor for edge in box)
            # Cut before resizing, so that the filter sees no pixel outside the box.
            x, y = int(left), int(top)
            part = image[y : math.ceil(bottom), x : math.ceil(right)]
            crop = resize(part, w, h, (left - x, top - y, right - x, bottom - y))
            crops.append(_mirrored(crop) if is_mirrored else crop)
        return crops


def center_crop(image: np.ndarray, size: Size, resize_ratio: float) -> np.ndarray:
    """Cut the center out of an image, for evaluation.

    The image is resized (bicubic, antialiased) until it just covers int(side / resize_ratio) along
    both sides, and the central `size` is cut out. For a square, the short side is resized, to 256
    for 224 and 0.875. A ratio of 1 keeps the whole image along one side. For a square this equals
    MAE's util/datasets.py, hence torchvision's Resize and CenterCrop.

    Returns:
      uint8 [h, w, C], from an image uint8 [H, W, C].
    """
    own, (h, w) = image.shape[:2], sides(size)
    least = int(h / resize_ratio), int(w / resize_ratio)
    axis = 0 if least[0] * own[1] >= least[1] * own[0] else 1  # the side that is covered exactly
    height, width = (least[axis] * side // own[axis] for side in own)
    left, top = round((width - w) / 2), round((height - h) / 2)
    return resize(image, width, height)[top : top + h, left : left + w]
