"""What every source of images gives: numbered samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from occinv.data.decode import Reduction
from occinv.schema import UserError


class DecodeError(UserError):
    """An image that cannot be read. `name` says which: a path, or a record of a data set."""

    def __init__(self, name: str, index: int, reason: object):
        super().__init__(f"cannot read image {index}, {name}: {reason}")
        self.name = name


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One image before cropping.

    image: uint8 [H, W, 3], RGB; of fewer pixels than are stored if `read` was so asked.
    label: the number of the class, -1 where there is none.
    index: the number of the image in its source; a subset keeps its parent's.
    """

    image: np.ndarray
    label: int
    index: int


class Source(Protocol):
    """Images that can be read in any order, from several threads at once.

    name:    for messages and logs: what was opened, and which part of it.
    classes: the names of the classes by label, empty when unlabeled.
    """

    name: str
    classes: tuple[str, ...]

    @property
    def names(self) -> Sequence[str]:
        """What the files are or were called, by index; empty where there never were files."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """int32 [len], all -1 when unlabeled. Slow at first use for `tfds:` sources."""
        ...

    def __len__(self) -> int: ...

    def where(self, index: int) -> str:
        """The file or record that sample number `index` is, as a person would look it up."""
        ...

    def expect(self, indices: Sequence[int]) -> None:
        """Is told which samples will be read next: a source far away may begin to fetch them."""
        ...

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Sample number `index`, 0 <= index < len. Raises DecodeError.

        reduction: see decode_rgb; a source whose images are not JPEGs need not ask it.
        """
        ...
