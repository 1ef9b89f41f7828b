"""Images in a folder on disk: `folder:PATH`."""

from __future__ import annotations

import csv
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from occinv.data.decode import decode_rgb
from occinv.data.listing import SUFFIXES, Listing, is_image, list_images, log_ignored
from occinv.data.source import Reduction, Sample, Source, decoding
from occinv.schema import UserError, nearest
from occinv.text import printable

VALIDATION = ("val", "validation", "test")  # beside `train`; the first that exists is used
PARTS = ("train", *VALIDATION)
LABELS = ("labels.csv", "labels.tsv", "labels.txt")  # beside the images of a flat folder


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderSource(Source):
    """The images below a folder, in the order of their sorted paths. See Source."""

    folder: str
    classes: tuple[str, ...]
    names: list[str]  # paths relative to `folder`
    labels: np.ndarray  # int32 [len]

    def __post_init__(self) -> None:
        self.name = f"folder:{printable(self.folder)}"

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """The bytes of each file."""

        def of_some(names: Sequence[str]) -> list[int]:
            return [os.stat(os.path.join(self.folder, name)).st_size for name in names]

        # Threads hide the latency of a remote disk. A task for each file would cost more than that.
        parts = [self.names[start : start + 1000] for start in range(0, len(self), 1000)]
        try:
            with ThreadPoolExecutor(8) as pool:
                return list(itertools.chain.from_iterable(pool.map(of_some, parts)))
        except OSError as error:
            where = printable(os.fsdecode(error.filename))
            raise UserError(f"cannot read the size of {where}: {error.strerror}") from error

    def files(self) -> Iterator[str]:
        """Yield the path, bytes and class of each image."""
        classes = (*self.classes, "")  # the last one is that of label -1
        for name, size, label in zip(self.names, self.sizes, self.labels.tolist(), strict=True):
            yield f"{printable(name)}\t{size}\t{classes[label]}"

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Decode the image. Raises DecodeError with the path of the file."""
        path = os.path.join(self.folder, self.names[index])
        with decoding(path, index):
            image = decode_rgb(Path(path).read_bytes(), path, reduction)
            return Sample(image, int(self.labels[index]), index)


def open_folder(path: str, *, train: bool) -> FolderSource:
    """Open `folder:PATH`.

    PATH holds one of these:

    - one sub-folder per class; labels by sorted name, images at any depth within;
    - only images, and perhaps one of LABELS with their classes, see `_labels_of`;
    - `train` in one of these forms. Training uses it, and evaluation uses its neighbor `val`,
      `validation` or `test`, whose classes must be among those of `train`. Without such a neighbor,
      both have the same images and the same `name`.

    Hidden files and folders are ignored. Other files are counted in the log. Every real file is
    listed once: see `list_images`.

    Raises:
      UserError: The folder is missing, unreadable, empty or ambiguous, or its labels do not fit.
    """
    root = Path(os.path.expanduser(path))
    try:
        _check_folder(root)
        parts = _parts(root)
        if not parts:
            return _open(root)
        validation = [name for name in VALIDATION if name in parts]
        if train or not validation:
            return _open(root / "train")
        return _open(root / validation[0], root / "train")
    except OSError as error:
        where = printable(os.fsdecode(error.filename or root))
        raise UserError(f"cannot list {where}: {error.strerror}") from error


def _check_folder(root: Path) -> None:
    shown = printable(str(root))
    if root.exists() and not root.is_dir():
        raise UserError(f"{shown} is a file, expected a folder of images")
    if not root.parent.is_dir():
        raise UserError(
            f"there is no folder {shown}, because there is no {printable(str(root.parent))}"
        )
    if not root.exists():
        siblings = [printable(child.name) for child in root.parent.iterdir() if child.is_dir()]
        raise UserError(f"there is no folder {shown}{nearest(printable(root.name), siblings)}")


def _parts(root: Path) -> list[str]:
    """Return the PARTS that `root` holds, or none if its folders are classes."""
    entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    parts = [name for name in folders if name in PARTS]
    if not parts:
        return []
    # Folders without images, such as annotations, are no classes.
    others = [name for name in folders if name not in PARTS and _holds_image(root / name)]
    others += [entry.name for entry in entries if is_image(entry.name) and entry.is_file()]
    shown = printable(str(root))
    if others:
        raise UserError(
            f"{shown} holds {parts[0]!r} and {others[0]!r}, so that {parts[0]!r} may be a class or "
            f"a part. Rename the class, or use folder:{shown}/{parts[0]} with data.eval_source."
        )
    if "train" not in parts:
        raise UserError(
            f"{shown} holds {parts[0]!r} and no 'train'. Use folder:{shown}/{parts[0]} for these "
            "images."
        )
    return parts


def _holds_image(folder: Path) -> bool:
    return any(is_image(name) for _, _, names in os.walk(folder) for name in names)


def _open(root: Path, train: Path | None = None) -> FolderSource:
    """Open one part, labeled as `train` is if that is given."""
    found = list_images(root)
    table = _table_of(found)
    log_ignored(found)
    shown = printable(str(root))
    if not found.images and not found.folders:
        raise UserError(f"{shown} holds no image, expected files named {', '.join(SUFFIXES)}")
    class_of = _classes_of(found, table)
    own = sorted(set(class_of.values()))
    names = own if train is None else _class_names(train)
    if missing := [name for name in own if names and name not in names]:
        raise UserError(
            f"{shown} has a class {missing[0]!r} that {printable(str(train))} does not have"
            + nearest(printable(missing[0]), map(printable, names))
        )
    if names and not own:
        raise UserError(
            f"{shown} holds images without classes, but {printable(str(train))} has classes. Name "
            f"their classes in {LABELS[0]}: docs/data.md"
        )
    label_of = {name: label for label, name in enumerate(names)}
    # By class, then by path: the "/" after the class comes before all characters of longer names.
    paths = sorted(found.images, key=lambda path: path.replace("/", "\0", 1))
    labels = [label_of.get(class_of.get(path, ""), -1) for path in paths]
    return FolderSource(
        folder=str(root),
        classes=tuple(map(printable, names)),
        names=paths,
        labels=np.array(labels, np.int32),
    )


def _class_names(root: Path) -> list[str]:
    """Return the sorted class names of a part, without listing the files of its classes."""
    folders = [e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")]
    if folders:
        return sorted(folders)
    found = list_images(root)
    return sorted(set(_classes_of(found, _table_of(found)).values()))


def _table_of(found: Listing) -> Path | None:
    """Return the file with the labels of a flat folder, if it has one. It is not ignored."""
    tables = [] if found.folders else [name for name in LABELS if name in found.ignored]
    if not tables:
        return None
    if len(tables) > 1:
        shown = printable(str(found.root))
        raise UserError(f"{shown} holds {' and '.join(tables)}, expected one of them")
    found.ignored.remove(tables[0])
    return found.root / tables[0]


def _classes_of(found: Listing, table: Path | None) -> dict[str, str]:
    """Return the class of each image by path, empty if there are no classes."""
    root = printable(str(found.root))
    if table is not None:
        return _labels_of(found, table)
    if not found.folders:
        return {}
    loose = min((path for path in found.images if "/" not in path), default=None)
    if loose is not None:
        raise UserError(
            f"{root} holds both images ({loose!r} ...) and folders ({found.folders[0]!r} ...), "
            "expected one folder per class or only images"
        )
    class_of = {path: path.split("/", 1)[0] for path in found.images}
    # Validation images may lack a class of `train`, but an empty folder is a mistake.
    if empty := sorted(set(found.folders) - set(class_of.values())):
        listed = ", except what another class holds" if found.repeated else ""
        raise UserError(
            f"{root}/{printable(empty[0])} holds no image{listed}, expected files named "
            f"{', '.join(SUFFIXES)}"
        )
    return class_of


def _labels_of(found: Listing, table: Path) -> dict[str, str]:
    """Read the classes of the images of a flat folder from a file, one of LABELS.

    A line is FILE,CLASS in `labels.csv`, FILE, a tab and CLASS in `labels.tsv`, and FILE, a space
    and CLASS in `labels.txt`. A first line whose FILE is no name of an image is a heading.

    Raises:
      UserError: A line is wrong or names no image of the folder, or an image has no line.
    """
    shown = printable(str(table))
    class_of: dict[str, str] = {}
    images = set(found.images)
    for number, cells in enumerate(_rows(table), 1):
        where = f"{shown}, line {number}"
        is_heading = number == 1 and cells and not is_image(cells[0])
        if is_heading or not cells:
            continue
        if len(cells) != 2 or not all(cells):
            raise UserError(f"{where}: {cells}, expected a file and its class")
        name, label = cells
        if name not in images:
            hint = nearest(printable(name), map(printable, images))
            raise UserError(f"{where}: {name!r} is no image of {printable(str(found.root))}{hint}")
        if name in class_of:
            raise UserError(f"{where} repeats {name!r}. Remove one of the lines.")
        class_of[name] = label
    if missing := sorted(images - class_of.keys()):
        raise UserError(f"{shown} has no line for {len(missing)} images, such as {missing[0]!r}")
    return class_of


def _rows(path: Path) -> list[list[str]]:
    """Return the cells of each line of a file with labels."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # a spreadsheet may write a mark first
        if path.suffix == ".txt":
            return [line.rsplit(maxsplit=1) for line in text.split("\n")]
        separator = "," if path.suffix == ".csv" else "\t"
        return list(csv.reader(text.split("\n"), delimiter=separator, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{printable(str(path))} cannot be read: {error}") from error
