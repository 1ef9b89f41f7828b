"""Images in a folder on disk: `folder:PATH`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from occinv.data.decode import decode_rgb
from occinv.data.source import Reduction, Sample, decoding
from occinv.schema import UserError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in any case
VALIDATION = ("val", "validation", "test")  # beside `train`; the first that exists is used


@dataclasses.dataclass(eq=False)
class FolderSource:
    """The images below a folder, in the order of their sorted paths. See Source."""

    folder: str
    classes: tuple[str, ...]
    names: list[str]  # paths relative to `folder`
    labels: np.ndarray  # int32 [len]

    def __post_init__(self) -> None:
        self.name = f"folder:{self.folder}"

    def __len__(self) -> int:
        return len(self.names)

    def prefetch(self, indices: Sequence[int]) -> None:
        """Do nothing: a disk needs no announcement."""

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Decode the image. Raises DecodeError with the path of the file."""
        path = os.path.join(self.folder, self.names[index])
        with decoding(path, index):
            image = decode_rgb(Path(path).read_bytes(), path, reduction)
            return Sample(image, int(self.labels[index]), index)


def open_folder(path: str, *, train: bool) -> FolderSource:
    """Open `folder:PATH`.

    PATH holds either one sub-folder per class (labels by sorted name, images at any depth within)
    or only images, which then have no labels. If PATH holds a sub-folder `train`, training uses
    that one, and evaluation uses its neighbor `val`, `validation` or `test`, whose classes must be
    among those of `train`. Without such a neighbor, both have the same images and the same `name`.
    Hidden files and folders are ignored.

    Raises:
      UserError: The folder is missing, unreadable, empty or ambiguous.
    """
    root = Path(path).expanduser()
    _check_folder(root)
    try:
        if not (root / "train").is_dir():
            return _labeled(root, _classes(root))
        validation = [root / name for name in VALIDATION if (root / name).is_dir()]
        classes = _classes(root / "train")
        if train or not validation:
            return _labeled(root / "train", classes)
        for name in _classes(validation[0]):
            if classes and name not in classes:
                raise UserError(
                    f"{validation[0]} has a class {name!r} that {root / 'train'} does not have"
                    + nearest(name, classes)
                )
        return _labeled(validation[0], classes)
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}") from error


def _check_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file, expected a folder of images")
    if not root.parent.is_dir():
        raise UserError(f"there is no folder {root}, because there is no {root.parent}")
    if not root.exists():
        siblings = [child.name for child in root.parent.iterdir() if child.is_dir()]
        raise UserError(f"there is no folder {root}{nearest(root.name, siblings)}")


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _classes(root: Path) -> tuple[str, ...]:
    """Return the sorted sub-folders of `root`, or none if it holds images."""
    entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    images = sorted(entry.name for entry in entries if entry.is_file() and _is_image(entry.name))
    if folders and images:
        raise UserError(
            f"{root} holds both images ({images[0]} ...) and folders ({folders[0]} ...), expected "
            "one folder per class or only images"
        )
    return tuple(folders)


def _walk(root: Path, top: Path) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise error  # os.walk would silently skip an unreadable folder

    for folder, children, files in os.walk(top, onerror=stop, followlinks=True):
        children[:] = [child for child in children if not child.startswith(".")]
        relative = os.path.relpath(folder, root)
        yield from (os.path.normpath(os.path.join(relative, f)) for f in files if _is_image(f))


def _labeled(root: Path, classes: tuple[str, ...]) -> FolderSource:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes) if classes else [(-1, "")]:
        # Validation images may lack a class of `train`, but an empty folder is a mistake.
        found = sorted(_walk(root, root / name)) if (root / name).is_dir() else []
        if not found and (root / name).is_dir():
            raise UserError(f"{root / name} holds no image, expected {', '.join(SUFFIXES)} files")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise UserError(f"{root} holds no image, expected {', '.join(SUFFIXES)} files")
    return FolderSource(str(root), classes, paths, np.asarray(labels, np.int32))
