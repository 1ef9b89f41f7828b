"""Some of a source's images: some classes, a list, or few of them, chosen by a seed.

All of these are views of the one data set on disk; nothing is copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from occinv.data.decode import Reduction
from occinv.data.source import Sample, Source
from occinv.schema import Choice, Data, UserError, nearest

# The classes of ImageNet-100 as contrastive multiview coding (CMC, Tian et al., ECCV 2020) drew
# them, in its order: the list that others have used since.
CLASS_LISTS = {"imagenet100": Path(__file__).with_name("imagenet100.txt")}


class Subset:
    """Some images of another source. Samples keep the parent's index. See Source.

    chosen:  int64 [len], the indices of the parent.
    classes: names of the parent's classes that remain, in its order; None: all of them. Labels are
             numbers in this list, so those of fewer classes are counted anew.
    """

    def __init__(self, parent: Source, chosen: np.ndarray, classes: tuple[str, ...] | None = None):
        self.parent = parent
        self.chosen = chosen
        self.name = f"{len(chosen)} of {len(parent)} images of {parent.name}"
        self.classes = parent.classes if classes is None else classes
        self.labels = parent.labels[chosen]
        if classes is not None:
            number = {name: label for label, name in enumerate(classes)}
            renumbered = np.array([number.get(name, -1) for name in parent.classes], np.int32)
            self.labels = renumbered[self.labels]
        # As samples say it: a subset of a subset means the source that it all comes from.
        self.indices: np.ndarray = chosen
        if isinstance(parent, Subset):
            self.indices = parent.indices[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def names(self) -> Sequence[str]:
        """The parent's names of these images."""
        return [self.parent.names[i] for i in self.chosen] if len(self.parent.names) else ()

    def where(self, index: int) -> str:
        """The parent's file or record."""
        return self.parent.where(int(self.chosen[index]))

    def expect(self, indices: Sequence[int]) -> None:
        """Tells the parent."""
        self.parent.expect(self.chosen[indices].tolist())

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """The parent's sample, with the label it has here. Raises DecodeError."""
        sample = self.parent.read(int(self.chosen[index]), reduction)
        return dataclasses.replace(sample, label=int(self.labels[index]))

    def lines(self) -> Iterator[str]:
        """Which images these are: index, class and file or record of each, between tabs."""
        for index, label in enumerate(self.labels.tolist()):
            name = self.classes[label] if self.classes else ""
            yield f"{self.indices[index]}\t{name}\t{self.where(index)}"


def select(source: Source, data: Data, seed: int) -> Source:
    """The part of `source` that a config's `data` section asks for, or all of it.

    Raises: UserError, see `listed`, `balanced` and `few`.
    """
    if data.list is not None:
        return listed(source, data.list)
    if data.num_images is not None:
        return few(source, data.num_images, data.choose, seed)
    if data.per_class is not None or data.fraction is not None:
        return balanced(source, per_class=data.per_class, fraction=data.fraction, seed=seed)
    return source


def of_classes(source: Source, wanted: str) -> Subset:
    """The images of some classes, whose labels become 0, 1, 2 ... in the order of the source.

    wanted: the name of one of CLASS_LISTS, a file with the name of a class a line (for ImageNet
      its WordNet id), or the names themselves between commas.

    Raises: UserError for a file that is not there, a class that the source has not, or none of
      whose images it has.
    """
    path = CLASS_LISTS.get(wanted)
    if path is None and (Path(wanted).suffix == ".txt" or Path(wanted).is_file()):
        path = Path(wanted)
    names = wanted.split(",") if path is None else _read_lines(path, "data.classes")
    for name in names:
        if name not in source.classes:
            known = source.classes if path is not None else (*source.classes, *CLASS_LISTS)
            raise UserError(
                f"data.classes={wanted!r}: {source.name} has no class {name!r}"
                + nearest(name, known)
            )
    classes = tuple(name for name in source.classes if name in set(names))
    labels = [label for label, name in enumerate(source.classes) if name in set(names)]
    chosen = np.flatnonzero(np.isin(source.labels, labels))
    if not len(chosen):
        raise UserError(f"data.classes={wanted!r}: {source.name} has no image of these classes")
    return Subset(source, chosen, classes)


def listed(source: Source, file: str) -> Subset:
    """The images that a file lists, in the order of the source.

    Each line begins with the number of an image in its source or with the name of its file, and
    what follows a tab is for people: so the `images.tsv` of another run is such a list, and so are
    the lists of labeled ImageNet files that others publish.

    Raises: UserError naming the line that is no image of this source, or comes twice.
    """
    numbers = source.indices if isinstance(source, Subset) else range(len(source))
    places = {int(number): place for place, number in enumerate(numbers)}
    by_name: dict[str, int] = {}
    chosen: dict[int, int] = {}  # place: line
    for number, line in enumerate(_read_lines(Path(file), "data.list"), 1):
        entry = line.split("\t")[0]
        if number == 1 and entry == "index":
            continue  # the heading of images.tsv
        if entry.isdecimal():
            place = places.get(int(entry))
        else:
            by_name = by_name or _by_name(source)
            place = by_name.get(entry, by_name.get(entry.rpartition("/")[2]))
        if place is None or place == _SEVERAL:
            problem = "is no image" if place is None else "is the name of several images"
            raise UserError(
                f"data.list={file!r}, line {number}: {entry!r} {problem} of {source.name}, "
                f"expected a number or a file's name{nearest(entry, by_name) if by_name else ''}"
            )
        if place in chosen:
            raise UserError(
                f"data.list={file!r}, line {number}: {entry!r} stands in line {chosen[place]}, too"
            )
        chosen[place] = number
    if not chosen:
        raise UserError(f"data.list={file!r} lists no image")
    return Subset(source, np.array(sorted(chosen), np.int64))


_SEVERAL = -1


def _by_name(source: Source) -> dict[str, int]:
    """The place of each image by its path and by the last part of it, where that is its own."""
    places = {name: place for place, name in enumerate(source.names)}
    for name, place in tuple(places.items()):
        last = name.rpartition("/")[2]
        if last != name:
            places[last] = _SEVERAL if last in places else place
    return places


def _read_lines(path: Path, field: str) -> list[str]:
    try:
        return [line.strip() for line in path.expanduser().read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{field}={str(path)!r} cannot be read: {error}") from error


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
    one seed, a larger part contains the smaller ones. Unlabeled images count as one class.

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
            name = source.classes[label] if source.classes else "(unlabeled)"
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
