"""Small files that are written whole or not at all, and errors of disk or bucket as one line."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from traceback import walk_tb
from typing import Any

from occinv.paths import BUCKET, in_bucket
from occinv.schema import UserError
from occinv.text import one_line

# Conditions of the disk that a user mends, and how.
REMEDIES = {
    "ENOSPC": "Free some space",
    "EDQUOT": "Free some of your quota",
    "EFBIG": "Raise the limit on the size of files (ulimit -f)",
    "EROFS": "Make the disk writable",
    "EACCES": "Get permission to write there",
    "EPERM": "Get permission to write there",
    "EIO": "Check the disk",
    "EISDIR": "Move the folder away",
    "EEXIST": "Move the file away",
    "ENOTDIR": "Move the file away",
}


class RunFailed(RuntimeError):
    """A run cannot go on. The command line prints the message as one line and exits with 1."""


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that the file is either the old one or the whole new one.

    The content is on the disk before the file gets its name. The folder is created. In a bucket,
    an object is visible only when it is complete.
    """
    if in_bucket(path):
        path.write_bytes(content)
        return
    partial = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, FileNotFoundError):  # /proc, for example, takes no new file
            reason = os.strerror(errno.EACCES)
            raise PermissionError(errno.EACCES, reason, str(path)) from error
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError, or its cause, that names no file, as those of a full disk."""
    try:
        yield
    except Exception as error:
        for each in _chain(error):
            if isinstance(each, OSError) and each.errno is not None and each.filename is None:
                each.filename = str(path)
        raise


def write_json(path: Path, content: Any, *, indent: int | None = 1) -> None:
    """Write `content` as `write_bytes` does. NaN and infinities become null: JSON has neither."""
    text = json.dumps(_finite(content), indent=indent, allow_nan=False)
    write_text(path, text + "\n")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
      FileNotFoundError: The file does not exist.
      UserError: The file cannot be read.
    """
    try:
        if not in_bucket(path) and path.exists() and not path.is_file():
            raise OSError("it is not a file")  # a pipe would never end
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}. Move it away, or repair it."
        ) from None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
      FileNotFoundError: The file does not exist.
      UserError: The file is empty, damaged or cannot be read, or has a number that is not finite.
    """
    content = read_bytes(path)
    try:
        return json.loads(content, parse_float=_number, parse_constant=_number, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        why = "is empty" if not content.strip(b"\0 \r\n\t") else f"is not JSON ({error})"
        raise UserError(f"{path} {why}. Restore it from a copy, or move it away.") from None


def _number(text: str) -> float:
    """Return a number of JSON. Python also reads NaN, and larger numbers than a float holds."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def _integer(text: str) -> int:
    _number(text)
    return int(text)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    is_number = isinstance(content, float)
    return None if is_number and not math.isfinite(content) else content


def disk_problem(error: BaseException) -> str | None:
    """Return one line about an error that a full or unwritable disk caused; None for others.

    Libraries in C++ report such errors as text, and threads raise them as the cause of others.
    """
    for each in _chain(error):
        text, name = str(each), None
        if isinstance(each, OSError) and each.errno is not None:
            name, path = errno.errorcode.get(each.errno), each.filename2 or each.filename
        else:
            # The wording of TensorStore, with which Orbax writes arrays.
            found = re.search(r"os_error_code='(\d+)'", text)
            name = found and errno.errorcode.get(int(found[1]))
            quoted = re.findall(r"\"(/[^\"]+)\"", text)  # the last is the file
            path = quoted[-1] if quoted else None
        if name in REMEDIES:
            where = f"{os.fsdecode(path)}: " if path is not None else ""
            reason = os.strerror(getattr(errno, name))
            return (
                f"cannot write: {where}{reason}. {REMEDIES[name]} and run the same command to "
                "continue."
            )
    return None


def bucket_problem(error: BaseException) -> str | None:
    """Return one line about an error of a bucket or the network to it; None for others.

    gcsfs raises errors of many types. TensorStore, with which Orbax writes arrays, names the
    object.
    """
    for each in _chain(error):
        modules = {frame.f_globals.get("__name__") for frame, _ in walk_tb(each.__traceback__)}
        if "gcsfs.core" in modules or re.search(f'(read|writ|delet)ing "{BUCKET}', str(each)):
            return f"the bucket failed: {one_line(str(each))}. Run the same command to continue."
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _chain(each)
        yield error
        error = error.__cause__ or error.__context__
