"""A part of a source: a view of the data set on disk; nothing is copied."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from occinv.data.source import Reduction, Sample, Source
from occinv.schema import Data
from occinv.text import printable


class Subset(Source):
    """Some images of another source. See occinv.data.source.Source.

    Args:
      source: The source or subset to choose from.
      chosen: int64 [len], indices in `source`.
      classes: Names of the classes to keep, in the order of `source`, by which the labels are
        renumbered; None keeps all.

    Attributes:
      parent: The whole source, also for a subset of a subset.
      indices: int64 [len], indices in `parent`, which the samples keep.
    """

    def __init__(self, source: Source, chosen: np.ndarray, classes: tuple[str, ...] | None = None):
        self.name = f"{len(chosen)} of {len(source)} images of {source.name}"
        self.classes = source.classes if classes is None else classes
        self.labels = source.labels[chosen]
        if classes is not None:
            number = {name: label for label, name in enumerate(classes)}
            renumbered = np.array([number.get(name, -1) for name in source.classes], np.int32)
            self.labels = renumbered[self.labels]
        self.parent, self.indices = source, chosen
        if isinstance(source, Subset):
            self.parent, self.indices = source.parent, source.indices[chosen]

    def __len__(self) -> int:
        return len(self.indices)

    @functools.cached_property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """The parent's names of these images."""
        names = self.parent.names
        return [names[i] for i in self.indices] if len(names) else ()

    def prefetch(self, indices: Sequence[int]) -> None:
        """Announce the samples to the parent."""
        self.parent.prefetch(self.indices[indices].tolist())

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Read the parent's sample and give it the label of this subset. Raises DecodeError."""
        sample = self.parent.read(int(self.indices[index]), reduction)
        return dataclasses.replace(sample, label=int(self.labels[index]))

    def files(self) -> Iterator[str]:
        """Yield the files of the parent."""
        return self.parent.files()

    def fingerprint(self) -> str:
        """Return a hash of the parent's fingerprint and the choice of images."""
        content = hashlib.sha256(self.parent.fingerprint().encode())
        content.update(self.indices.tobytes() + self.labels.tobytes())
        return content.hexdigest()

    def lines(self) -> Iterator[str]:
        """Yield the index, class and printable file name of each image, separated by tabs."""
        names = self.names or [""] * len(self)
        for index, label, name in zip(self.indices, self.labels, names, strict=True):
            yield f"{index}\t{self.classes[label] if label >= 0 else ''}\t{printable(name)}"


def select(source: Source, data: Data, seed: int) -> Source:
    """Return the part of `source` to train on, by the fields of the `data` section.

    Raises:
      UserError: The part does not exist; see the functions of selections.py.
    """
    if {data.list, data.num_images, data.per_class, data.fraction} == {None}:
        return source
    from occinv.data import selections

    if data.list is not None:
        return selections.listed(source, data.list)
    if data.num_images is not None:
        return selections.few(source, data.num_images, data.choose, seed)
    if data.per_class is not None:
        return selections.per_class(source, data.per_class, seed)
    return selections.fraction(source, data.fraction or 1.0, seed)
