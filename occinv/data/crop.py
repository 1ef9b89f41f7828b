"""Crops on the host. Only RandAugment is random after them and not on the device."""

from __future__ import annotations

import importlib.util
import math
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image

# No wheel of it: Linux on ARM.
HAS_VECTORISED_RESIZE = importlib.util.find_spec("cykooz_resizer") is not None


class Crop(NamedTuple):
    """A further random crop that an objective asks of each image."""

    size: int  # pixels a side
    scale: tuple[float, float] | None = None  # of area; None: that of the first crop


def _crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the crop that torchvision's RandomResizedCrop would draw."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        # Only rng.random: it is by far the fastest way to one number.
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.random() * (width - w + 1))
            top = int(rng.random() * (height - h + 1))
            return left, top, left + w, top + h
    # No luck in ten tries: the largest central crop whose aspect is allowed.
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class _Resizer(threading.local):
    """Resizes with vector instructions. One for each thread: it keeps its work space."""

    def __init__(self) -> None:
        import cykooz_resizer as fast

        catmull_rom = fast.ResizeAlg.convolution(fast.FilterType.catmull_rom)  # Pillow's BICUBIC
        self._options = fast.ResizeOptions(catmull_rom, use_alpha=False)
        self._resize = fast.Resizer().resize
        self._image = fast.ImageData
        self._rgb = fast.PixelType.U8x3

    def __call__(self, image: np.ndarray, width: int, height: int) -> np.ndarray:
        rows, columns = image.shape[:2]
        whole = self._image(columns, rows, self._rgb, image.tobytes())
        narrow = self._image(width, rows, self._rgb)
        resized = self._image(width, height, self._rgb)
        # The width first, in a call of its own, as Pillow up to 12 does. The other order cuts off
        # what overshoots 0..255 in between elsewhere: 20 levels at sharp edges.
        self._resize(whole, narrow, self._options)
        self._resize(narrow, resized, self._options)
        return np.frombuffer(resized.get_buffer(), np.uint8).reshape(height, width, 3)


_resizer = _Resizer() if HAS_VECTORISED_RESIZE else None


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image at another size: Pillow's bicubic resize with antialiasing, several times faster.

    At most 2 levels of 255 from that of Pillow up to 12 in any value, 0.02 in the mean. (Pillow 13
    resizes the height before the width where that is faster, which shows at sharp edges.) Where
    the faster library has no wheel, Pillow does the work, in the same order.

    image: uint8 [H, W, 3].  Returns: uint8 [height, width, 3].
    """
    if _resizer is None:
        bicubic = Image.Resampling.BICUBIC
        narrow = Image.fromarray(image).resize((width, image.shape[0]), bicubic)
        return np.asarray(narrow.resize((width, height), bicubic))
    return _resizer(image, width, height)


def _mirrored(image: np.ndarray) -> np.ndarray:
    # A channel at a time: NumPy copies image[:, ::-1] six times more slowly.
    mirrored = np.empty_like(image)
    for channel in range(3):
        mirrored[..., channel] = image[:, ::-1, channel]
    return mirrored


def random_resized_crop(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> np.ndarray:
    """A random part of the image, resized to a square and perhaps mirrored.

    The behaviour is that of torchvision's RandomResizedCrop and RandomHorizontalFlip on PIL
    images: the part's area is uniform in `scale` (a fraction of the image's), its aspect ratio
    log-uniform in `ratio`, ten tries, then the largest central crop of an allowed aspect; bicubic
    with antialiasing. With scale (1, 1) and flip 0, an image that is already size x size comes
    back unchanged.

    image: uint8 [H, W, 3].  Returns: uint8 [size, size, 3].
    """
    height, width = image.shape[:2]
    left, top, right, bottom = _crop_box(width, height, rng, scale, ratio)
    is_mirrored = rng.random() < flip
    # Crop first, so that the filter sees no pixel outside the box.
    crop = resize(image[top:bottom, left:right], size, size)
    return _mirrored(crop) if is_mirrored else crop


def center_crop(image: np.ndarray, size: int, resize_ratio: float = 0.875) -> np.ndarray:
    """The middle of the image at a fixed size, for evaluation.

    The short side is resized (bicubic, antialiased) to int(size / resize_ratio), 256 for the usual
    224 and 0.875, and the central square of `size` is cut out; 1.0 keeps the whole short side.
    The behaviour is that of MAE's util/datasets.py, so of torchvision's Resize and CenterCrop.

    image: uint8 [H, W, 3].  Returns: uint8 [size, size, 3].
    Raises: ValueError when `resize_ratio` is not in (0, 1].
    """
    if not 0 < resize_ratio <= 1:
        raise ValueError(f"resize_ratio is {resize_ratio}, expected a number in (0, 1]")
    short, shortest = int(size / resize_ratio), min(image.shape[:2])
    height, width = (short * side // shortest for side in image.shape[:2])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resize(image, width, height)[top : top + size, left : left + size]
