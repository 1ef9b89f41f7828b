"""TFRecord files without TensorFlow: write them, read them in order, and read them at random.

A record is its length (8 bytes, little-endian), a checksum of the length, the content, and a
checksum of the content. The format does not say where record n begins, so a stream of records
(tf.data) cannot seek. An index of all records (prepared.py) allows random access: order,
resumption and the shares of processes are then the same code as for ArrayRecord. tensorstore reads
byte ranges, also from `gs://`, with many reads in flight.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import google_crc32c
import numpy as np
import tensorstore

WINDOW = 8 << 20  # bytes per read when a file is read in order
_HEADER, _FOOTER = 12, 4  # bytes before and after the content
_IN_FLIGHT = 512  # reads of a bucket at once: at 50 ms each, 10,000 a second


class Damaged(ValueError):
    """A record with a wrong checksum, or a file that ends within a record."""


def _checksum(content: bytes) -> bytes:
    # TFRecord masks the CRC-32C (rotation and offset), because a content may contain a CRC itself.
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def write_records(path: str | os.PathLike[str], contents: Iterable[bytes]) -> None:
    """Write a whole file of records. Raises OSError."""
    with open(path, "wb") as file:
        for content in contents:
            length = struct.pack("<Q", len(content))
            file.write(length + _checksum(length) + content + _checksum(content))


class Shards:
    """The files of a folder, local or in a bucket, read by byte ranges from any thread."""

    def __init__(self, folder: str):
        self.is_remote = "://" in folder
        # A spec in JSON takes a local path as it is; a URL would need escapes.
        local = {"driver": "file", "path": f"{os.path.abspath(folder)}/"}
        spec = f"{folder.rstrip('/')}/" if self.is_remote else local
        context = tensorstore.Context({"gcs_request_concurrency": {"limit": _IN_FLIGHT}})
        self._store = tensorstore.KvStore.open(spec, context=context).result()

    def fetch(self, name: str, begin: int, end: int) -> Callable[[], bytes]:
        """Start to read the bytes `begin` to `end - 1` of a file.

        Returns:
          A function that waits for them. It raises Damaged if the file is too short or missing.
        """
        reading = self._store.read(name, byte_range=slice(begin, end))

        def wait() -> bytes:
            try:
                found = reading.result()
            except ValueError as error:  # out of range
                raise Damaged(f"{name} ends too soon") from error
            if found.state != "value":
                raise Damaged(f"{name} is missing")
            return found.value

        return wait

    def fetch_record(self, name: str, begin: int, length: int) -> Callable[[], bytes]:
        """Start to read the record at byte `begin` with `length` bytes of content. See `fetch`."""
        wait = self.fetch(name, begin, begin + _HEADER + length + _FOOTER)

        def content() -> bytes:
            data = wait()
            content = data[_HEADER:-_FOOTER]
            if data[:8] != struct.pack("<Q", length) or data[-_FOOTER:] != _checksum(content):
                raise Damaged(f"checksum of the record at byte {begin} of {name} is wrong")
            return content

        return content

    def records(self, name: str, size: int) -> Iterator[tuple[int, bytes]]:
        """Yield the first byte and the content of every record of a file of `size` bytes.

        Raises:
          Damaged: A checksum is wrong, or the file ends within a record.
        """
        window, first = b"", 0  # the bytes read last, and where they begin
        at = 0

        def cut(begin: int, count: int) -> bytes:
            nonlocal window, first
            if begin + count > first + len(window):
                if begin + count > size:
                    raise Damaged(f"{name} ends within the record at byte {at}")
                first, end = begin, min(size, begin + max(count, WINDOW))
                window = self.fetch(name, begin, end)()
            return window[begin - first : begin - first + count]

        while at < size:
            header = cut(at, _HEADER)
            if _checksum(header[:8]) != header[8:]:
                raise Damaged(f"checksum of the length at byte {at} of {name} is wrong")
            (length,) = struct.unpack("<Q", header[:8])
            content = cut(at + _HEADER, length + _FOOTER)
            if _checksum(content[:length]) != content[length:]:
                raise Damaged(f"checksum of the record at byte {at} of {name} is wrong")
            yield at, content[:length]
            at += _HEADER + length + _FOOTER


@dataclasses.dataclass
class TfRecords:
    """Records by number, with the interface of tfds's data sources.

    Attributes:
      shards: The files.
      names: File name of each shard.
      shard: Int [len], the number of the file of each record.
      begin: Int [len], the byte of the file at which the record begins.
      length: Int [len], bytes of the content.
      parse: Returns the features of the content of a record.
    """

    shards: Shards
    names: Sequence[str]
    shard: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    parse: Callable[[bytes], dict[str, Any]]

    def __post_init__(self) -> None:
        self._fetched: dict[int, Callable[[], bytes]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fetched": {}}  # a copy reads for itself

    def __len__(self) -> int:
        return len(self.begin)

    def prefetch(self, indices: Iterable[int]) -> None:
        """Start to read records that are needed soon, if they are in a bucket."""
        if self.shards.is_remote:
            for number in indices:
                self._fetched[number] = self._fetch(number)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return the features of a record. Raises Damaged."""
        wait = self._fetched.pop(number, None) or self._fetch(number)
        return self.parse(wait())

    def _fetch(self, number: int) -> Callable[[], bytes]:
        name = self.names[self.shard[number]]
        return self.shards.fetch_record(name, int(self.begin[number]), int(self.length[number]))
