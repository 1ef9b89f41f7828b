"""Some of a source's images, chosen by a seed: few labels, or few images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from occinv.data.sample import Sample, Source
from occinv.schema import Choice, Data, UserError


class Subset:
    """Some images of another source. Samples keep the parent's index. See Source.

    chosen: int64 [len], the indices of the parent.
    """

    def __init__(self, parent: Source, chosen: np.ndarray):
        self.parent = parent
        self.chosen = chosen
        self.name = f"{len(chosen)} of {len(parent)} images of {parent.name}"
        self.classes = parent.classes
        self.labels = parent.labels[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def where(self, index: int) -> str:
        """The parent's file or record."""
        return self.parent.where(int(self.chosen[index]))

    def read(self, index: int) -> Sample:
        """The parent's sample. Raises DecodeError."""
        return self.parent.read(int(self.chosen[index]))

    def lines(self) -> Iterator[str]:
        """Which images these are: index, class and file or record of each, between tabs."""
        for index, label in enumerate(self.labels.tolist()):
            name = self.classes[label] if self.classes else ""
            yield f"{self.chosen[index]}\t{name}\t{self.where(index)}"


def select(source: Source, data: Data, seed: int) -> Source:
    """The part of `source` that a config's `data` section asks for, or all of it.

    Raises: UserError, see `balanced` and `few`.
    """
    if data.num_images is not None:
        return few(source, data.num_images, data.choose, seed)
    if data.per_class is not None or data.fraction is not None:
        return balanced(source, per_class=data.per_class, fraction=data.fraction, seed=seed)
    return source


def balanced(
    source: Source,
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> Subset:
    """A class-balanced part of `source`, for training on few labels.

    Exactly one of `per_class` (images of each class) and `fraction` (of each class's images,
    rounded, at least one) is given. The choice depends on (seed, class) only and is nested: with
    one seed, a larger part contains the smaller ones. Unlabelled images count as one class.

    Raises: UserError when both or neither is given, `fraction` is not in (0, 1], or a class has
    fewer than `per_class` images.
    """
    if (per_class is None) == (fraction is None):
        raise UserError(f"give one of per_class ({per_class}) and fraction ({fraction})")
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}, expected a number above 0 and at most 1")
    chosen = []
    for label in np.unique(source.labels).tolist():
        members = _members(source, label, seed)
        count = per_class if fraction is None else max(1, round(fraction * len(members)))
        if count is None or not 1 <= count <= len(members):
            name = source.classes[label] if source.classes else "(unlabelled)"
            raise UserError(
                f"per_class is {count}, expected 1 to {len(members)}: class {name!r} of "
                f"{source.name} has {len(members)} images"
            )
        chosen.append(members[:count])
    return Subset(source, np.sort(np.concatenate(chosen)))


def few(source: Source, num_images: int, choose: Choice = "random", seed: int = 0) -> Subset:
    """`num_images` images of `source`, to pretrain on (Tables 6 to 8).

    choose: `random`; `one_class`, all of one class that is drawn among those with enough images;
    or `one_per_class`, each of another class. The choice depends on the seed only, and is nested
    but for `one_class`, where fewer classes have enough images for a larger part.

    Raises: UserError when there are not so many images, or none such.
    """
    available = len(source)
    if choose == "random":
        order = _order(available, [seed, 0])
    else:
        labels, counts = np.unique(source.labels, return_counts=True)
        drawn = _order(len(labels), [seed, 0])
        if choose == "one_class":
            available = int(counts.max())
            enough = [place for place in drawn if counts[place] >= num_images]
            order = _members(source, int(labels[enough[0]]), seed) if enough else drawn[:0]
        else:
            available = len(labels)
            order = np.array([_members(source, int(labels[place]), seed)[0] for place in drawn])
    if not 1 <= num_images <= available:
        what = {
            "random": "all of them",
            "one_class": "those of the largest class",
            "one_per_class": "its classes",
        }[choose]
        raise UserError(
            f"data.num_images={num_images}, data.choose={choose!r}: expected 1 to {available}, "
            f"{what} in {source.name}"
        )
    return Subset(source, np.sort(order[:num_images]))


def _members(source: Source, label: int, seed: int) -> np.ndarray:
    """The images of a class in the seed's order."""
    members = np.flatnonzero(source.labels == label)
    return members[_order(len(members), [seed, label + 1])]


def _order(count: int, seeds: list[int]) -> np.ndarray:
    # Sorting raw bits, for the reason given in order.py.
    bits = np.random.Philox(np.random.SeedSequence(seeds))
    return np.argsort(bits.random_raw(count), kind="stable")
