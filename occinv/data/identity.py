"""The identity of the images of a measurement, and of those that the model was trained on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from typing import Literal

import numpy as np

from occinv.data.folder import FolderSource
from occinv.data.source import DecodeError, Source
from occinv.data.subset import Subset

Split = Literal["validation", "training", "other"]
COMPARED = 8  # images of two sources with equal file names


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a measurement.

    Attributes:
      name: The name of their source.
      count: Their number.
      digest: A hash of their file names, or of the source's name if it has no files.
      split: `training` if the model was trained on any of them, `validation` if they are the
        validation images of the run's own config, `other` if they come from elsewhere.
    """

    name: str
    count: int
    digest: str
    split: Split


def identify(source: Source, training: Source | None, is_own: bool) -> Images:
    """Describe the images of `source` for a model that was trained on `training`.

    Args:
      source: The images.
      training: The training images; None if they are not known, so that none of them is found.
      is_own: Whether the run's config names the images, as its validation images.
    """
    split: Split = "validation" if is_own else "other"
    if training is None:
        return Images(source.name, len(source), digest(source), split)
    if is_copy(source, training) or not set(keys(source)).isdisjoint(keys(training)):
        split = "training"
    return Images(source.name, len(source), digest(source), split)


def digest(source: Source) -> str:
    """Return a hash of the file names of a source, or of its name if it has no files."""
    names = file_names(source) or [source.name]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def file_names(source: Source) -> list[str]:
    """Return the file names of images in a folder, and none for other sources.

    The names of a tfds source would be read record by record; its name and indices identify it.
    """
    parent = source.parent if isinstance(source, Subset) else source
    return list(source.names) if isinstance(parent, FolderSource) else []


def keys(source: Source) -> list[str]:
    """Return a string for each image of a source that no other image has.

    It is the path of the file if there is one, else the name of the source with the index.
    """
    parent = source.parent if isinstance(source, Subset) else source
    indices = source.indices if isinstance(source, Subset) else range(len(source))
    if file_names(parent):
        root = os.path.realpath(os.path.expanduser(getattr(parent, "folder", "")))
        return [f"{root}/{parent.names[index]}" for index in indices]
    return [f"{parent.name}\t{index}" for index in indices]


def is_copy(first: Source, second: Source) -> bool:
    """Return whether two sources have the same file names and images, as a folder and its copy.

    Names alone do not tell: the parts for training and validation may both have a cat/0001.png.
    A few images are compared. Those that cannot be read count as equal.
    """
    if len(first) != len(second) or not file_names(first):
        return False
    if file_names(first) != file_names(second):
        return False
    for number in range(COMPARED):
        index = number * (len(first) - 1) // (COMPARED - 1)
        with contextlib.suppress(DecodeError):
            if not np.array_equal(first.read(index).image, second.read(index).image):
                return False
    return True


def rows_in(source: Source, others: Source) -> list[int]:
    """Return the row of each image of `source` in `others`, -1 for an image that is not there."""
    if is_copy(source, others):
        return list(range(len(source)))
    place = {key: row for row, key in enumerate(keys(others))}
    return [place.get(key, -1) for key in keys(source)]


def pack(hits: np.ndarray, row: np.ndarray, count: int) -> str:
    """Write `count`, and as hexadecimal digits which of so many images are classified correctly.

    Args:
      hits: bool [n].
      row: int64 [n], the place of each result among the images; a missing image counts as a miss.
      count: The number of images.
    """
    every = np.zeros(count, bool)
    every[row] = hits
    return f"{count}:{np.packbits(every).tobytes().hex()}"


def unpack(text: str) -> np.ndarray:
    """Return the bool [count] that `pack` wrote."""
    count, _, digits = text.partition(":")
    packed = np.frombuffer(bytes.fromhex(digits), np.uint8)
    return np.unpackbits(packed, count=int(count)).astype(bool)
