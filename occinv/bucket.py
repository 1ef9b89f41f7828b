"""Paths in a bucket of Google Cloud Storage, with the methods of pathlib.Path that occinv calls.

etils.epath reads and writes through gcsfs, the extra `occinv[gcs]`. The class here changes what
differs from pathlib.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import fsspec
from etils.epath.gpath import PosixGPath

# TensorStore and other processes write, too, so a listing must not come from gcsfs's memory.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
# gcsfs logs each error that it raises, with a traceback.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def _system() -> Any:
    """Return gcsfs's file system, the same as epath's."""
    return fsspec.filesystem("gcs", finalize_on_close=True)


class BucketPath(PosixGPath):
    """A path `gs://BUCKET/FOLDER`.

    A bucket has objects and no folders: a folder exists if an object is in it. An object becomes
    visible whole, at the end of its upload. `exists`, `is_dir` and `is_file` raise an error of the
    network or of a permission, where epath returns False.
    """

    def exists(self) -> bool:
        return self._kind() is not None

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def is_file(self) -> bool:
        return self._kind() == "file"

    def _kind(self) -> str | None:
        try:
            return _system().info(str(self))["type"]
        except FileNotFoundError:
            return None

    def files(self) -> Iterator[BucketPath]:
        """Yield every file in this folder and in the folders in it."""
        for name in _system().find(str(self)):
            yield type(self)(f"gs://{name}")

    def expanduser(self) -> BucketPath:
        return self

    def absolute(self) -> BucketPath:
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        return self

    def read_bytes(self) -> bytes:
        return _system().cat_file(str(self))

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> int:
        _system().pipe_file(str(self), data)
        return len(data)
