"""Images in a folder on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from occinv.data.decode import Reduction, decode_rgb
from occinv.data.source import DecodeError, Sample
from occinv.schema import UserError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # in any case
HELD_OUT = ("val", "validation", "test")  # beside `train`; the first that exists is taken


class FolderSource:
    """The images below a folder, in the order of their sorted paths. See occinv.data.source.Source.

    paths: relative to `folder`.  labels: int32 [len].
    """

    def __init__(
        self, folder: Path, classes: tuple[str, ...], paths: list[str], labels: np.ndarray
    ):
        self.name = f"folder:{folder}"
        self.folder = str(folder)
        self.classes = classes
        self.paths = paths
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> list[str]:
        """The paths below the folder."""
        return self.paths

    def where(self, index: int) -> str:
        """The path below the folder."""
        return self.paths[index]

    def expect(self, indices: Sequence[int]) -> None:
        """Nothing: the images are here."""

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """The decoded image. Raises DecodeError naming the file."""
        path = os.path.join(self.folder, self.paths[index])
        try:
            image = decode_rgb(path, reduction=reduction)
        except MemoryError:
            raise
        except Exception as error:  # for bad bytes Pillow raises many types, even struct.error
            raise DecodeError(path, index, error) from error
        return Sample(image, int(self.labels[index]), index)


def open_folder(path: str, *, train: bool) -> FolderSource:
    """Opens `folder:PATH`.

    PATH holds either one sub-folder per class (labels by sorted name, images at any depth within)
    or images alone, which then have no label. If PATH holds a sub-folder `train`, training takes
    that and evaluation its neighbor `val`, `validation` or `test`, whose classes must be among
    those of `train`. Where nothing is held out, both have the same images and `name`. Hidden files
    and folders are ignored.

    Raises: UserError naming the folder that is missing, unreadable, empty or ambiguous.
    """
    root = Path(path).expanduser()
    _check_folder(root)
    try:
        if not (root / "train").is_dir():
            return _labeled(root, _classes(root))
        held_out = [root / name for name in HELD_OUT if (root / name).is_dir()]
        classes = _classes(root / "train")
        if train or not held_out:
            return _labeled(root / "train", classes)
        for name in _classes(held_out[0]):
            if classes and name not in classes:
                raise UserError(
                    f"{held_out[0]} has a class {name!r} that {root / 'train'} has not"
                    + nearest(name, classes)
                )
        return _labeled(held_out[0], classes)
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}") from error


def _check_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise UserError(f"{root} is a file, expected a folder of images")
    message = f"there is no folder {root}"
    if root.parent.is_dir():
        siblings = [child.name for child in root.parent.iterdir() if child.is_dir()]
        message += nearest(root.name, siblings) if siblings else f": {root.parent} has no folders"
    else:
        message += f": there is no {root.parent} either"
    raise UserError(message)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _classes(root: Path) -> tuple[str, ...]:
    """The class names: sorted sub-folders, or none where images lie in `root` itself."""
    entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    images = sorted(entry.name for entry in entries if entry.is_file() and _is_image(entry.name))
    if folders and images:
        raise UserError(
            f"{root} holds both images ({images[0]} ...) and folders ({folders[0]} ...): expected "
            "one folder per class, or images alone"
        )
    return tuple(folders)


def _walk(root: Path, top: Path) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise error  # os.walk would skip an unreadable folder in silence

    for folder, children, files in os.walk(top, onerror=stop, followlinks=True):
        children[:] = [child for child in children if not child.startswith(".")]
        relative = os.path.relpath(folder, root)
        yield from (os.path.normpath(os.path.join(relative, f)) for f in files if _is_image(f))


def _labeled(root: Path, classes: tuple[str, ...]) -> FolderSource:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes) if classes else [(-1, "")]:
        # A class of `train` may lack from `val`, but an empty folder is a mistake.
        found = sorted(_walk(root, root / name)) if (root / name).is_dir() else []
        if not found and (root / name).is_dir():
            raise UserError(f"{root / name} holds no image: expected {', '.join(SUFFIXES)} files")
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise UserError(f"{root} holds no image: expected {', '.join(SUFFIXES)} files")
    return FolderSource(root, classes, paths, np.asarray(labels, np.int32))
