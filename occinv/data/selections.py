"""The ways to choose a subset: by class, by a list, or a few images chosen by a seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from occinv.data.source import Source
from occinv.data.subset import Subset
from occinv.schema import Choice, UserError, nearest
from occinv.text import printable

# The classes of ImageNet-100 of contrastive multiview coding (CMC, Tian et al., ECCV 2020), in its
# order. Later papers use the same list.
CLASS_LISTS = {"imagenet100": Path(__file__).with_name("imagenet100.txt")}


def of_classes(source: Source, wanted: str) -> Subset:
    """Choose the images of some classes. Their labels become 0, 1, 2 ... in the source's order.

    Args:
      source: Images to choose from.
      wanted: A name in CLASS_LISTS, a file with one class name per line (WordNet ids for
        ImageNet), or class names separated by commas.

    Raises:
      UserError: The file cannot be read, or the source lacks a class or has no image of any.
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
    labels = [source.classes.index(name) for name in classes]
    chosen = np.flatnonzero(np.isin(source.labels, labels))
    if not len(chosen):
        raise UserError(f"data.classes={wanted!r}: {source.name} has no image of these classes")
    return Subset(source, chosen, classes)


def listed(source: Source, file: str) -> Subset:
    """Choose the images listed in a file. They keep the order of the source.

    Each line begins with the index of an image or with its file name, perhaps escaped as by
    `printable`; anything after a tab is ignored. So `images.tsv` of another run is such a list, and
    so are published lists of labeled ImageNet files.

    Raises:
      UserError: A line matches no image or several images, or repeats an earlier line.
    """
    indices = source.indices.tolist() if isinstance(source, Subset) else range(len(source))
    by_index = {str(index): [place] for place, index in enumerate(indices)}
    by_name: dict[str, list[int]] = {}
    chosen: dict[int, int] = {}  # place in the source -> line
    for number, line in enumerate(_read_lines(Path(file), "data.list"), 1):
        entry = line.split("\t")[0].strip()
        if number == 1 and entry == "index":
            continue  # the heading of images.tsv
        if not entry.isdecimal() and not by_name:
            by_name = _by_name(source)
        names = (entry, printable(entry), Path(entry).name)
        places = by_index.get(entry) or next((by_name[n] for n in names if n in by_name), [])
        where = f"data.list={file!r}, line {number}: {entry!r}"
        if len(places) != 1:
            problem = "is the name of several images" if places else "is no image"
            raise UserError(
                f"{where} {problem} of {source.name}, expected an index or a file name"
                + (nearest(entry, by_name) if by_name else "")
            )
        if places[0] in chosen:
            raise UserError(f"{where} repeats line {chosen[places[0]]}. Remove one of them.")
        chosen[places[0]] = number
    if not chosen:
        raise UserError(f"data.list={file!r} lists no image, expected one per line")
    return Subset(source, np.array(sorted(chosen), np.int64))


def _by_name(source: Source) -> dict[str, list[int]]:
    """Return the places of the images by printable path, and by the last part of the path."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(source.names):
        for key in {printable(name), printable(Path(name).name)}:
            places.setdefault(key, []).append(place)
    return places


def _read_lines(path: Path, field: str) -> list[str]:
    try:
        found = path.expanduser()
        if found.exists() and not found.is_file():
            raise OSError("it is not a file")  # a device would never end
        text = found.read_text(encoding="utf-8-sig")
        return [line.strip() for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no such home folder
        raise UserError(f"{field}={str(path)!r} cannot be read: {error}") from error


def per_class(source: Source, count: int, seed: int = 0) -> Subset:
    """Choose `count` images of each class.

    The choice depends on (seed, class) alone and is nested: with one seed, a larger part contains
    the smaller ones. Unlabeled images count as one class. Raises UserError if a class has fewer.
    """
    return _balanced(source, lambda available: count, seed)


def fraction(source: Source, share: float, seed: int = 0) -> Subset:
    """Choose a share in (0, 1] of each class, rounded, at least one image. See `per_class`."""
    return _balanced(source, lambda available: max(1, round(share * available)), seed)


def _balanced(source: Source, count: Callable[[int], int], seed: int) -> Subset:
    chosen = []
    for label in np.unique(source.labels).tolist():
        members = _members(source, label, seed)
        wanted = count(len(members))
        if not 1 <= wanted <= len(members):
            name = source.classes[label] if source.classes else "(unlabeled)"
            raise UserError(
                f"data.per_class={wanted}: class {name!r} of {source.name} has {len(members)} "
                f"images. Use 1 to {len(members)}."
            )
        chosen.append(members[:wanted])
    return Subset(source, np.sort(np.concatenate(chosen)))


def few(source: Source, count: int, choose: Choice = "random", seed: int = 0) -> Subset:
    """Choose `count` images to pretrain on (Tables 6 to 8 of the paper).

    The choice depends on the seed alone. `one_class` draws one class among those with enough
    images; `one_per_class` draws each image from another class. The choice is nested, except for
    `one_class`, where fewer classes have enough images for a larger part.

    Raises:
      UserError: The source has fewer such images.
    """
    labels, counts = np.unique(source.labels, return_counts=True)
    drawn = _order(len(labels), [seed, 0])
    if choose == "random":
        order, available, unit = _order(len(source), [seed, 0]), len(source), "images"
    elif choose == "one_class":
        enough = [place for place in drawn if counts[place] >= count]
        order = _members(source, int(labels[enough[0]]), seed) if enough else drawn[:0]
        available, unit = int(counts.max()), "images in its largest class"
    else:
        order = np.array([_members(source, int(labels[place]), seed)[0] for place in drawn])
        available, unit = len(labels), "classes"
    if not 1 <= count <= available:
        raise UserError(
            f"data.num_images={count} with data.choose={choose!r}: {source.name} has {available} "
            f"{unit}. Use 1 to {available}."
        )
    return Subset(source, np.sort(order[:count]))


def _members(source: Source, label: int, seed: int) -> np.ndarray:
    """Return the images of a class in the order of the seed."""
    members = np.flatnonzero(source.labels == label)
    return members[_order(len(members), [seed, label + 1])]


def _order(count: int, seeds: list[int]) -> np.ndarray:
    # Sort raw bits, for the reason given in order.py.
    bits = np.random.Philox(np.random.SeedSequence(seeds))
    return np.argsort(bits.random_raw(count), kind="stable")
