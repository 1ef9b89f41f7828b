"""The interface of an image source: numbered samples that can be read in any order."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from occinv.schema import UserError
from occinv.text import printable

# Maps the width and height of a JPEG to the factor by which it may be decoded smaller: 1, 2, 4, 8.
Reduction = Callable[[int, int], int]


class DecodeError(UserError):
    """An image that cannot be read. `name` is its path, or its record and data set, printable."""

    def __init__(self, name: str, index: int, reason: object):
        self.name, self.index, self.reason = printable(name), index, str(reason)
        super().__init__(f"cannot read image {index}, {self.name}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.index, self.reason)


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
      image: uint8 [H, W, 3], RGB, or [H, W, C] for another `data.channels`; smaller than stored if
        `read` was given a reduction.
      label: The number of the class, -1 for an image without a label.
      index: The number of the image in its source; a subset keeps the index of its parent.
    """

    image: np.ndarray
    label: int
    index: int


class Source(abc.ABC):
    """Images that can be read in any order and from several threads at once.

    A source of your own is a subclass, see docs/data.md. It sets `name`, `classes` and `labels`,
    and defines `__len__` and `read`.

    Attributes:
      name: The source and its part, for messages and logs. Equal names mean equal images: the part
        for validation has the name of the part for training if the data has no validation images.
      classes: The names of the classes by label, printable; empty for unlabeled images.
      labels: int32 [len], all -1 for unlabeled images. Slow at first use for `tfds:` sources.
      names: The file names by index, empty for images that have no file names.
    """

    name: str
    classes: tuple[str, ...]
    labels: np.ndarray
    names: Sequence[str] = ()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Read sample `index`, 0 <= index < len. Raises DecodeError.

        A source of JPEGs passes `reduction` to `decode_rgb`; others ignore it.
        """

    def prefetch(self, indices: Sequence[int]) -> None:  # noqa: B027
        """Announce the samples that are read next; a remote source begins to fetch them."""

    def files(self) -> Iterator[str]:
        """Yield a line for each file of the data: name, bytes and class, separated by tabs.

        They are compared at every start, so they must come without reading images. The bytes are
        empty if they are unknown, and so is the class of a file of several images.
        """
        if len(self.names) == 0:
            return
        for name, label in zip(self.names, self.labels.tolist(), strict=True):
            yield f"{printable(name)}\t\t{self.classes[label] if label >= 0 else ''}"

    def fingerprint(self) -> str:
        """Return a hash of the number of images, the class names and `files`. Reads no image.

        An image that was replaced by another one of the same size does not change it.
        """
        content = hashlib.sha256(f"{len(self)} images, {len(self.classes)} classes\n".encode())
        for lines in (self.classes, self.files()):
            for line in lines:
                content.update(f"{line}\n".encode())
        return content.hexdigest()
