"""The interface of an image source: numbered samples that can be read in any order."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from occinv.schema import UserError

# Maps the width and height of a JPEG to the factor by which it may be decoded smaller: 1, 2, 4, 8.
Reduction = Callable[[int, int], int]


class DecodeError(UserError):
    """An image that cannot be read. `name` is its path, or its record and data set."""

    def __init__(self, name: str, index: int, reason: object):
        super().__init__(f"cannot read image {index}, {name}: {reason}")
        self.name = name


@contextlib.contextmanager
def decoding(name: str, index: int) -> Iterator[None]:
    """Turn any error of a decoder into a DecodeError that names the image."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # for bad bytes Pillow raises many types, even struct.error
        raise DecodeError(name, index, error) from error


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One image before cropping.

    Attributes:
      image: uint8 [H, W, 3], RGB; smaller than stored if `read` was given a reduction.
      label: The number of the class, -1 for an image without a label.
      index: The number of the image in its source; a subset keeps the index of its parent.
    """

    image: np.ndarray
    label: int
    index: int


class Source(Protocol):
    """Images that can be read in any order and from several threads at once.

    Attributes:
      name: The source and its part, for messages and logs.
      classes: The names of the classes by label, empty for unlabeled images.
      labels: int32 [len], all -1 for unlabeled images. Slow at first use for `tfds:` sources.
      names: The file names by index, empty for images that have no file names.
    """

    name: str
    classes: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def prefetch(self, indices: Sequence[int]) -> None:
        """Announce the samples that are read next; a remote source begins to fetch them."""

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Read sample `index`, 0 <= index < len. Raises DecodeError.

        A source of JPEGs passes `reduction` to `decode_rgb`; others ignore it.
        """
        ...
