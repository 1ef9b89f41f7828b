"""TFRecord files without TensorFlow: written, read through, and read at random.

A record is its length (8 bytes, little-endian), a checksum of that, the content, and a checksum of
the content. Nothing says where the n-th one begins, and so a stream of them (tf.data) has no
position to go back to: after a restart it reads again all that came before, and its order depends
on how many processes share the files. One pass that notes where each record begins (notes.py)
gives random access instead: order, resumption and the parts of processes are then the very code
that ArrayRecord has, and a flipped bit is found by the checksum of the record that is asked for.

Files are read by byte ranges through tensorstore, which does the same for `gs://` and runs many
reads at once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import tensorstore

WINDOW = 8 << 20  # bytes that are asked for at once when reading through
_HEADER, _FOOTER = 12, 4  # bytes before and after the content
_IN_FLIGHT = 512  # reads of a bucket at once: at 50 ms each, ten thousand a second


class Damaged(ValueError):
    """A record whose checksum is wrong, or a file that ends within one."""


class Record(NamedTuple):
    """begin: where the record, with its header, begins in its file, in bytes."""

    begin: int
    content: bytes


def _checksum(content: bytes) -> bytes:
    # CRC-32C, rotated and shifted, for a checksum may itself be in what is checked.
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_records(path: str | os.PathLike[str], contents: Iterable[bytes]) -> None:
    """Writes a whole file of records. Raises OSError."""
    with open(path, "wb") as file:
        for content in contents:
            length = struct.pack("<Q", len(content))
            file.write(length + _checksum(length) + content + _checksum(content))


class Shards:
    """The files of a folder, local or in a bucket, read by ranges from any thread."""

    def __init__(self, folder: str):
        self.is_remote = "://" in folder
        # As JSON a local path may have any character; as a URL it would have to be escaped.
        local = {"driver": "file", "path": f"{os.path.abspath(folder)}/"}
        spec = f"{folder.rstrip('/')}/" if self.is_remote else local
        context = tensorstore.Context({"gcs_request_concurrency": {"limit": _IN_FLIGHT}})
        self._store = tensorstore.KvStore.open(spec, context=context).result()

    def ask(self, name: str, begin: int, end: int) -> Any:
        """Begins to read bytes begin .. end - 1 of a file, for `take`."""
        return self._store.read(name, byte_range=slice(begin, end))

    def take(self, asked: Any, name: str) -> bytes:
        """The bytes that were asked for. Raises Damaged where the file is shorter, or missing."""
        try:
            found = asked.result()
        except ValueError as error:  # out of range
            raise Damaged(f"{name} ends too soon") from error
        if found.state != "value":
            raise Damaged(f"{name} is missing")
        return found.value

    def ask_record(self, name: str, begin: int, length: int) -> Any:
        """Begins to read the record of `length` bytes that begins there, for `take_record`."""
        return self.ask(name, begin, begin + _HEADER + length + _FOOTER)

    def take_record(self, asked: Any, name: str, begin: int) -> bytes:
        """The content of the record that was asked for. Raises Damaged."""
        data = self.take(asked, name)
        content = data[_HEADER:-_FOOTER]
        if data[:8] != struct.pack("<Q", len(content)) or data[-_FOOTER:] != _checksum(content):
            raise Damaged(f"checksum of the record at byte {begin} of {name} is wrong")
        return content

    def records(self, name: str, size: int) -> Iterator[Record]:
        """Every record of a file of `size` bytes, in order. Raises Damaged."""
        window, first = b"", 0

        def cut(begin: int, count: int) -> bytes:
            nonlocal window, first
            if begin + count > first + len(window):
                if begin + count > size:
                    raise Damaged(f"{name} ends within the record at byte {at}")
                first = begin
                end = min(size, begin + max(count, WINDOW))
                window = self.take(self.ask(name, begin, end), name)
            return window[begin - first : begin - first + count]

        at = 0
        while at < size:
            header = cut(at, _HEADER)
            if _checksum(header[:8]) != header[8:]:
                raise Damaged(f"checksum of the length at byte {at} of {name} is wrong")
            (length,) = struct.unpack("<Q", header[:8])
            content = cut(at + _HEADER, length + _FOOTER)
            if _checksum(content[:length]) != content[length:]:
                raise Damaged(f"checksum of the record at byte {at} of {name} is wrong")
            yield Record(at, content[:length])
            at += _HEADER + length + _FOOTER


class TfRecords:
    """Records by number, as tfds's data sources give them.

    names: the file of each shard.  shard, begin, length: int [len], of each record.
    parse: from the content of a record to its features.
    """

    def __init__(
        self,
        shards: Shards,
        names: list[str],
        shard: np.ndarray,
        begin: np.ndarray,
        length: np.ndarray,
        parse: Callable[[bytes], dict[str, Any]],
    ):
        self._shards, self._names, self._parse = shards, names, parse
        self._shard, self._begin, self._length = shard, begin, length
        self._asked: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._begin)

    def expect(self, indices: Iterable[int]) -> None:
        """Begins to read records that will be asked for soon, where an answer takes its time."""
        if self._shards.is_remote:
            for index in indices:
                self._asked[index] = self._shards.ask_record(*self._place(index))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The features of a record. Raises Damaged."""
        name, begin, length = self._place(index)
        asked = self._asked.pop(index, None) or self._shards.ask_record(name, begin, length)
        return self._parse(self._shards.take_record(asked, name, begin))

    def _place(self, index: int) -> tuple[str, int, int]:
        name = self._names[self._shard[index]]
        return name, int(self._begin[index]), int(self._length[index])
