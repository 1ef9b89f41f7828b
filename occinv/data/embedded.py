"""Data sets that come inside Python packages: nothing to download, nothing on disk to prepare."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence

import numpy as np
from PIL import Image

from occinv.data.decode import Reduction, decode_rgb
from occinv.data.source import Sample
from occinv.schema import UserError

# Class name -> file in the wheel of scikit-image. Only photographs (and micrographs): no drawings,
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
BLOCKS_ACROSS = 6  # coarse blocks along the short side of a photograph; a block is 2 x 2 tiles


class EmbeddedSource:
    """Labeled images of one size, held in memory. See occinv.data.source.Source.

    images: uint8 [len, H, W, 3].  labels: int32 [len].
    """

    names = ()

    def __init__(self, name: str, classes: tuple[str, ...], images: np.ndarray, labels: np.ndarray):
        self.name = name
        self.classes = classes
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        """Nothing: the number says it all."""
        return ""

    def expect(self, indices: Sequence[int]) -> None:
        """Nothing: the images are here."""

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """The image as uint8 [H, W, 3]; cannot fail for 0 <= index < len."""
        return Sample(self.images[index], int(self.labels[index]), index)


def block_boxes(width: int, height: int, train: bool) -> list[tuple[int, int, int, int]]:
    """The coarse blocks of a photograph that belong to training, or to testing, as pixel boxes.

    A photograph is cut into square blocks, BLOCKS_ACROSS along its short side. Every third block,
    along diagonals so that each row and column has some, is for testing; the others for training.

    Returns: (left, top, right, bottom) in pixels of the photograph; no two boxes overlap.
    """
    side = min(width, height) / BLOCKS_ACROSS
    boxes = []
    for row in range(int(height / side + 1e-6)):
        for column in range(int(width / side + 1e-6)):
            if ((row - column) % 3 == 0) != train:
                left, right = round(column * side), round((column + 1) * side)
                top, bottom = round(row * side), round((row + 1) * side)
                boxes.append((left, top, right, bottom))
    return boxes


def cut_tiles(photograph: Image.Image, tile: int, train: bool) -> np.ndarray:
    """The train or test tiles of one photograph.

    Each block is cut out BEFORE it is resized to 2 x 2 tiles, so no filter carries a test pixel
    into a train tile, and no crop of a train tile can see one. Test tiles do not overlap each
    other; train tiles are cut at half a tile's stride. Of all these, TRAIN_TILES or TEST_TILES
    evenly spaced ones are kept. A tile shows 1/12 of the photograph's short side at any `tile`.

    Returns: uint8 [TRAIN_TILES or TEST_TILES, tile, tile, 3].
    """
    starts = (0, tile // 2, tile) if train else (0, tile)
    tiles = []
    for box in block_boxes(*photograph.size, train):
        block = photograph.crop(box).resize((2 * tile, 2 * tile), Image.Resampling.BICUBIC)
        pixels = np.asarray(block)
        tiles += [pixels[top : top + tile, left : left + tile] for top in starts for left in starts]
    count = TRAIN_TILES if train else TEST_TILES
    return np.stack([tiles[i * len(tiles) // count] for i in range(count)])


@functools.lru_cache(maxsize=4)
def photos(train: bool, tile: int = 32) -> EmbeddedSource:
    """Tiles of the photographs in scikit-image's wheel; the label is the photograph.

    18 classes, 100 train and 40 test tiles each, from disjoint regions (`block_boxes`). The same
    on every machine; reads no network.

    Raises: UserError when `tile` is odd or not in 8..128, or the wheel lacks a photograph.
    """
    if not 8 <= tile <= 128 or tile % 2:
        raise UserError(f"photos:{tile}: expected an even tile size from 8 to 128, as in photos:32")
    folder = importlib.resources.files("skimage").joinpath("data")
    tiles = []
    for name, file in PHOTOGRAPHS.items():
        try:
            with folder.joinpath(file).open("rb") as stream:
                photograph = Image.fromarray(decode_rgb(stream))
        except OSError as error:
            raise UserError(
                f"photos: the installed scikit-image has no photograph {name!r} ({error}); "
                "expected the wheel of version 0.24 or newer"
            ) from error
        tiles.append(cut_tiles(photograph, tile, train))
    images = np.concatenate(tiles)
    labels = np.repeat(np.arange(len(tiles), dtype=np.int32), len(tiles[0]))
    name = f"photos:{tile} ({'train' if train else 'test'} regions)"
    return _frozen(EmbeddedSource(name, tuple(PHOTOGRAPHS), images, labels))


@functools.lru_cache(maxsize=2)
def digits(train: bool) -> EmbeddedSource:
    """scikit-learn's 1,797 handwritten digits of 8 x 8, enlarged to 32 x 32 RGB (bicubic).

    Every fifth image of each class, in the package's order, is for testing (so both parts hold
    images of the same writers); the others for training.
    """
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    loaded = load_digits()
    labels = loaded.target.astype(np.int32)
    rank = np.zeros_like(labels)  # of each image within its class
    for label in range(10):
        rank[labels == label] = np.arange(np.count_nonzero(labels == label))
    chosen = np.flatnonzero((rank % 5 == 4) != train)
    gray = np.round(loaded.images[chosen] * (255 / 16)).astype(np.uint8)  # the package's 0..16
    large = [Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC) for image in gray]
    images = np.repeat(np.stack([np.asarray(image) for image in large])[..., None], 3, axis=-1)
    name = f"digits ({'train' if train else 'test'})"
    return _frozen(EmbeddedSource(name, tuple("0123456789"), images, labels[chosen]))


def _frozen(source: EmbeddedSource) -> EmbeddedSource:
    # The source is cached and shared: nobody may write into it.
    source.images.setflags(write=False)
    source.labels.setflags(write=False)
    return source
