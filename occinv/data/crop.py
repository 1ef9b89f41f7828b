"""Crops on the host. Only RandAugment is random after them and not on the device."""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# No wheel of it: Linux on ARM.
HAS_VECTORIZED_RESIZE = importlib.util.find_spec("cykooz_resizer") is not None


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
        self._box = fast.CropBox
        self._rgb = fast.PixelType.U8x3

    def __call__(self, image: np.ndarray, width: int, height: int, box: Box) -> np.ndarray:
        rows, columns = image.shape[:2]
        left, top, right, bottom = box
        whole = self._image(columns, rows, self._rgb, image.tobytes())
        narrow = self._image(width, rows, self._rgb)
        resized = self._image(width, height, self._rgb)
        # The width first, in a call of its own, as Pillow up to 12 does. The other order cuts off
        # what overshoots 0..255 in between elsewhere: 20 levels at sharp edges.
        self._options.crop_box = self._box(left, 0, right - left, rows)
        self._resize(whole, narrow, self._options)
        self._options.crop_box = self._box(0, top, width, bottom - top)
        self._resize(narrow, resized, self._options)
        return np.frombuffer(resized.get_buffer(), np.uint8).reshape(height, width, 3)


_resizer = _Resizer() if HAS_VECTORIZED_RESIZE else None


def resize(image: np.ndarray, width: int, height: int, box: Box | None = None) -> np.ndarray:
    """The image at another size: Pillow's bicubic resize with antialiasing, several times faster.

    At most 2 levels of 255 from that of Pillow up to 12 in any value, 0.02 in the mean. (Pillow 13
    resizes the height before the width where that is faster, which shows at sharp edges.) Where
    the faster library has no wheel, Pillow does the work, in the same order.

    image: uint8 [H, W, 3].  Returns: uint8 [height, width, 3].
    box: what of the image is shown, its edges perhaps between two pixels; None: all of it. The
      filter sees pixels outside of it too.
    """
    rows, columns = image.shape[:2]
    left, top, right, bottom = box = box or (0, 0, columns, rows)
    if _resizer is None:
        bicubic = Image.Resampling.BICUBIC
        narrow = Image.fromarray(image).resize((width, rows), bicubic, (left, 0, right, rows))
        return np.asarray(narrow.resize((width, height), bicubic, (0, top, width, bottom)))
    return _resizer(image, width, height, box)


def _mirrored(image: np.ndarray) -> np.ndarray:
    # A channel at a time: NumPy copies image[:, ::-1] six times more slowly.
    mirrored = np.empty_like(image)
    for channel in range(3):
        mirrored[..., channel] = image[:, ::-1, channel]
    return mirrored


class RandomCrops:
    """Random crops of one image, each drawn as by random_resized_crop, before it is decoded.

    Where they lie depends on the image's own size and on `rng`, never on how many times smaller
    it is then decoded.
    """

    def __init__(
        self,
        crops: Sequence[Crop],
        rng: np.random.Generator,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        flip: float,
    ):
        self._crops = crops
        self._rng = rng
        self._scale = scale
        self._ratio = ratio
        self._flip = flip
        self._size: tuple[int, int] | None = None
        self._reduction = 1
        self._placed: list[tuple[int, tuple[int, int, int, int], bool]] = []

    def reduction(self, width: int, height: int) -> int:
        """Draws the crops of an image of this size, which may then be decoded smaller.

        Returns: how many times: the largest of 1, 2, 4 and 8 that leaves each crop the pixels it
        needs.
        """
        self._size = width, height
        spare = math.inf
        for crop in self._crops:
            box = _crop_box(width, height, self._rng, crop.scale or self._scale, self._ratio)
            self._placed.append((crop.size, box, self._rng.random() < self._flip))
            spare = min(spare, (box[2] - box[0]) / crop.size, (box[3] - box[1]) / crop.size)
        self._reduction = max(factor for factor in (1, 2, 4, 8) if factor <= max(1, spare))
        return self._reduction

    def cut(self, image: np.ndarray) -> list[np.ndarray]:
        """The crops of the image, whether it comes whole or as much smaller as was allowed.

        image: uint8 [H, W, 3].  Returns: uint8 [size, size, 3] for each crop.
        """
        size = image.shape[1], image.shape[0]
        if self._size is None:
            self.reduction(*size)
        factor = 1 if size == self._size else self._reduction
        crops = []
        for side, box, is_mirrored in self._placed:
            left, top, right, bottom = (edge / factor for edge in box)
            # Crop first, so that the filter sees no pixel outside the box.
            x, y = int(left), int(top)
            part = image[y : math.ceil(bottom), x : math.ceil(right)]
            crop = resize(part, side, side, (left - x, top - y, right - x, bottom - y))
            crops.append(_mirrored(crop) if is_mirrored else crop)
        return crops


def random_resized_crop(
    image: np.ndarray,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
) -> np.ndarray:
    """A random part of the image, resized to a square and perhaps mirrored.

    The behavior is that of torchvision's RandomResizedCrop and RandomHorizontalFlip on PIL
    images: the part's area is uniform in `scale` (a fraction of the image's), its aspect ratio
    log-uniform in `ratio`, ten tries, then the largest central crop of an allowed aspect; bicubic
    with antialiasing. With scale (1, 1) and flip 0, an image that is already size x size comes
    back unchanged.

    image: uint8 [H, W, 3].  Returns: uint8 [size, size, 3].
    """
    (crop,) = RandomCrops([Crop(size)], rng, scale, ratio, flip).cut(image)
    return crop


def center_crop(image: np.ndarray, size: int, resize_ratio: float = 0.875) -> np.ndarray:
    """The middle of the image at a fixed size, for evaluation.

    The short side is resized (bicubic, antialiased) to int(size / resize_ratio), 256 for the usual
    224 and 0.875, and the central square of `size` is cut out; 1.0 keeps the whole short side.
    The behavior is that of MAE's util/datasets.py, so of torchvision's Resize and CenterCrop.

    image: uint8 [H, W, 3].  Returns: uint8 [size, size, 3].
    Raises: ValueError when `resize_ratio` is not in (0, 1].
    """
    if not 0 < resize_ratio <= 1:
        raise ValueError(f"resize_ratio is {resize_ratio}, expected a number in (0, 1]")
    short, shortest = int(size / resize_ratio), min(image.shape[:2])
    height, width = (short * side // shortest for side in image.shape[:2])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resize(image, width, height)[top : top + size, left : left + size]
