"""Paths of workdirs: folders on a disk, or in a bucket of Google Cloud Storage."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from occinv.sections import UserError

BUCKET = "gs://"


def as_path(path: str | Path) -> Path:
    """Return the path that a text names, on a disk or in a bucket.

    Args:
      path: `gs://BUCKET/FOLDER`, or a path on a disk, where the home folder may be `~`. `gs:/` is a
        bucket, too, because pathlib removes a slash.

    Returns:
      A pathlib.Path, or in a bucket a BucketPath, which has its methods.

    Raises:
      UserError: The path has another scheme, it names no bucket, gcsfs is not installed, or no file
        can have this name.
    """
    text = re.sub("^gs:/+", BUCKET, str(path))
    if not in_bucket(text):
        if re.match(r"\w+://", text):
            raise UserError(f"{text!r} has an unknown scheme, expected a path or {BUCKET}BUCKET/…")
        return _possible(path)
    if text == BUCKET:
        raise UserError(f"{text!r} names no bucket, expected {BUCKET}BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text!r} needs the package gcsfs; run `pip install gcsfs`")
    from occinv.bucket import BucketPath

    return cast(Path, BucketPath(text))


def _possible(path: str | Path) -> Path:
    """Return a path that a file can have. Raise UserError for a loop of links or a long name."""
    reason: object
    try:
        found = Path(path).expanduser()
        os.stat(found)
        return found
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            return found
        reason = error.strerror
    except (ValueError, RuntimeError) as error:  # NUL, or no such home folder
        reason = str(error).rstrip(".")
    raise UserError(f"{str(path)[:100]!r}: {reason}. Use another path.")


def in_bucket(path: str | Path) -> bool:
    """Whether a path is in a bucket."""
    return str(path).startswith(BUCKET)


def bucket_of(path: Path) -> Path:
    """Return the root of the bucket of a path."""
    return as_path("/".join(str(path).split("/")[:3]))


def files_in(folder: Path) -> Iterator[Path]:
    """Yield every file in a folder and in the folders in it."""
    if in_bucket(folder):
        yield from cast(Any, folder).files()
    else:
        yield from (path for path in folder.rglob("*") if path.is_file())


def remove_folder(folder: Path) -> None:
    """Remove a folder and everything in it; a missing folder is no error."""
    if in_bucket(folder):
        cast(Any, folder).rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
