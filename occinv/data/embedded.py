"""Data sets inside Python packages, which need no download: photographs and digits."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
from collections.abc import Sequence

import numpy as np
from PIL import Image

from occinv.data.source import Reduction, Sample, Source
from occinv.schema import UserError

# Class name -> file in the wheel of scikit-image. Only photographs and micrographs: no drawings,
# no test patterns, and one of the two nearly equal views of the motorcycle.
PHOTOGRAPHS = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cat": "chelsea.png",
    "cell": "cell.png",
    "clock": "clock_motion.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
    "text": "text.png",
}
TRAIN_TILES, TEST_TILES = 100, 40  # per class
REGIONS_ACROSS = 6  # square regions along the short side of a photograph; a region is 2 x 2 tiles


@dataclasses.dataclass(eq=False)
class EmbeddedSource(Source):
    """Labeled images of one size in memory, read-only. See occinv.data.source.Source."""

    name: str
    classes: tuple[str, ...]
    images: np.ndarray  # uint8 [len, H, W, 3]
    labels: np.ndarray  # int32 [len]
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.images.setflags(write=False)  # the source is cached and shared
        self.labels.setflags(write=False)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Return the sample."""
        return Sample(self.images[index], int(self.labels[index]), index)


def region_boxes(width: int, height: int, train: bool) -> list[tuple[int, int, int, int]]:
    """Return the regions of a photograph for training or testing: (left, top, right, bottom).

    A photograph is cut into disjoint square regions, REGIONS_ACROSS along its short side. Every
    third region, along diagonals, is for testing; the others are for training.
    """
    side = min(width, height) / REGIONS_ACROSS
    boxes = []
    for row in range(int(height / side + 1e-6)):
        for column in range(int(width / side + 1e-6)):
            if ((row - column) % 3 == 0) != train:
                left, right = round(column * side), round((column + 1) * side)
                top, bottom = round(row * side), round((row + 1) * side)
                boxes.append((left, top, right, bottom))
    return boxes


def cut_tiles(photograph: Image.Image, tile: int, train: bool) -> np.ndarray:
    """Cut the train or test tiles out of one photograph.

    Each region is cut out BEFORE it is resized to 2 x 2 tiles, so the filter carries no test pixel
    into a train tile. Test tiles do not overlap; train tiles are cut at a stride of half a tile.
    TRAIN_TILES or TEST_TILES of them, evenly spaced, are kept. A tile shows 1/12 of the short side
    of the photograph for any `tile`.

    Returns:
      uint8 [TRAIN_TILES or TEST_TILES, tile, tile, 3].
    """
    starts = (0, tile // 2, tile) if train else (0, tile)
    tiles = []
    for box in region_boxes(*photograph.size, train):
        region = photograph.crop(box).resize((2 * tile, 2 * tile), Image.Resampling.BICUBIC)
        pixels = np.asarray(region)
        tiles += [pixels[top : top + tile, left : left + tile] for top in starts for left in starts]
    count = TRAIN_TILES if train else TEST_TILES
    return np.stack([tiles[i * len(tiles) // count] for i in range(count)])


@functools.lru_cache(maxsize=4)
def photos(train: bool, tile: int = 32) -> EmbeddedSource:
    """Open tiles of the photographs in scikit-image's wheel; the label is the photograph.

    There are 18 classes with 100 train and 40 test tiles each, from disjoint regions
    (`region_boxes`), the same on every machine.

    Raises:
      UserError: `tile` is not an even number of 8 to 128, or the wheel lacks a photograph.
    """
    from occinv.data.decode import decode_rgb

    if not 8 <= tile <= 128 or tile % 2:
        raise UserError(f"photos:{tile}, expected an even tile size from 8 to 128, as in photos:32")
    folder = importlib.resources.files("skimage").joinpath("data")
    tiles = []
    for name, file in PHOTOGRAPHS.items():
        try:
            photograph = decode_rgb(folder.joinpath(file).read_bytes(), file)
        except OSError as error:
            raise UserError(
                f"photos: the installed scikit-image has no photograph {name!r} ({error}). "
                "Install the wheel of version 0.24 or newer."
            ) from error
        tiles.append(cut_tiles(Image.fromarray(photograph), tile, train))
    images = np.concatenate(tiles)
    labels = np.repeat(np.arange(len(tiles), dtype=np.int32), len(tiles[0]))
    name = f"photos:{tile} ({'train' if train else 'test'} regions)"
    return EmbeddedSource(name, tuple(PHOTOGRAPHS), images, labels)


@functools.lru_cache(maxsize=2)
def digits(train: bool) -> EmbeddedSource:
    """Open scikit-learn's 1,797 handwritten digits of 8 x 8, enlarged to 32 x 32 RGB (bicubic).

    Every fifth image of each class, in the order of the package, is for testing; the others are
    for training. Both parts contain digits of the same writers.
    """
    from sklearn.datasets import load_digits  # slow to import

    loaded = load_digits()
    labels = loaded.target.astype(np.int32)
    rank = np.tril(labels[:, None] == labels, -1).sum(1)  # of each image within its class
    chosen = np.flatnonzero((rank % 5 == 4) != train)
    gray = np.round(loaded.images[chosen] * (255 / 16)).astype(np.uint8)  # from 0..16
    large = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in gray]
    images = np.repeat(np.stack([np.asarray(image) for image in large])[..., None], 3, axis=-1)
    name = f"digits ({'train' if train else 'test'})"
    return EmbeddedSource(name, tuple("0123456789"), images, labels[chosen])
