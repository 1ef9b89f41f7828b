"""The images below a folder: every real file once, and what was ignored."""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
from pathlib import Path

from occinv.schema import UserError
from occinv.text import is_utf8, printable

logger = logging.getLogger("occinv.data")

# In any case. The content decides how a file is decoded: see decode.py.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
)  # fmt: skip


@dataclasses.dataclass
class Listing:
    """The content of a folder. All paths are relative to it.

    Attributes:
      root: The folder.
      images: Files named as images, unsorted.
      folders: Its direct sub-folders.
      ignored: Files that are not images.
      repeated: Links to files and folders that are listed already.
    """

    root: Path
    images: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    ignored: list[str] = dataclasses.field(default_factory=list)
    repeated: list[str] = dataclasses.field(default_factory=list)


def is_image(name: str) -> bool:
    """Return whether a file of this name is listed. Hidden files are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def list_images(root: Path) -> Listing:
    """List a folder and the folders below it, without hidden files and folders.

    Links are followed after everything else, so that a file keeps its own place. A link to a file
    or folder that is listed already is not followed.

    Raises:
      OSError: A folder cannot be read.
      UserError: A link leads nowhere, or a name is not UTF-8.
    """
    found = Listing(root)
    folders: set[str] = set()  # real paths
    links: list[str] = []
    _walk(found, "", os.path.realpath(root), folders, links)
    files = []
    while links:
        level, links = sorted(links), []  # a linked folder may hold further links
        for path in level:
            full = root / path
            if not full.exists():
                if not is_image(full.name):
                    found.ignored.append(path)
                    continue
                target = printable(os.readlink(full))
                raise UserError(f"{printable(str(full))} is a link to {target}, which is missing")
            if not full.is_dir():
                files.append(path)
                continue
            if "/" not in path:
                found.folders.append(path)
            _walk(found, path, os.path.realpath(full), folders, links)
    linked: set[str] = set()
    for path in files:
        full, target = root / path, os.path.realpath(root / path)
        if not is_image(full.name) or not full.is_file():
            found.ignored.append(path)
        elif target in linked or _is_listed(target, folders):
            found.repeated.append(path)
        else:
            linked.add(target)
            found.images.append(path)
    found.folders.sort()
    _check_names([*found.folders, *found.images], root)
    return found


def _walk(found: Listing, path: str, real: str, folders: set[str], links: list[str]) -> None:
    """Add what is in one folder and below to `found` and `folders`, except for links."""
    pending = [(path, real)]
    while pending:
        path, real = pending.pop()
        if real in folders:
            found.repeated.append(path)
            continue
        folders.add(real)
        with os.scandir(found.root / path) as entries:
            for entry in entries:
                name = entry.name
                below = f"{path}/{name}" if path else name
                if name.startswith("."):
                    continue
                if entry.is_symlink():
                    links.append(below)
                elif entry.is_dir():
                    pending.append((below, f"{real}/{name}"))
                    if not path:
                        found.folders.append(name)
                elif is_image(name) and entry.is_file():
                    found.images.append(below)
                else:
                    found.ignored.append(below)


def _is_listed(target: str, folders: set[str]) -> bool:
    folder, name = os.path.split(target)
    return folder in folders and is_image(name)


def _check_names(paths: list[str], root: Path) -> None:
    try:
        "\n".join(paths).encode()
    except UnicodeEncodeError as error:
        wrong = next(path for path in paths if not is_utf8(path))
        shown = printable(f"{root}/{wrong}")
        raise UserError(f"the name of {shown} is not UTF-8. Rename it.") from error


def log_ignored(found: Listing) -> None:
    """Log how many files were ignored, by suffix, and how many links."""
    root = printable(str(found.root))
    if found.ignored:
        paths = sorted(found.ignored)
        kinds = collections.Counter(Path(path).suffix.lower() or "no suffix" for path in paths)
        parts = ", ".join(f"{count} {printable(kind)}" for kind, count in kinds.most_common())
        _log_once(f"{root}: ignored other files: {parts} (first: {printable(paths[0])})")
    if found.repeated:
        count, first = len(found.repeated), printable(min(found.repeated))
        _log_once(f"{root}: ignored links to what is listed already: {count} (first: {first})")


@functools.cache
def _log_once(line: str) -> None:
    # A folder is opened more than once in a run.
    logger.warning("%s", line)
