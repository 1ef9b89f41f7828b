"""A data set that tensorflow_datasets has prepared: its records by number, in either format.

ArrayRecord has random access of its own, through `as_data_source`; for TFRecord see tfrecord.py.
An index of each split holds what only a pass over all records can tell: labels, file names, and
where each TFRecord begins. It is made at the first need and kept beside the data set.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from occinv.data.tfds.tfrecord import Damaged, Shards, TfRecords
from occinv.schema import UserError

logger = logging.getLogger("occinv.data")

FORMATS = ("array_record", "tfrecord")  # the first one found is read
_READERS = 32  # files read at once to make an index, enough to hide the latency of a bucket


class Keys(NamedTuple):
    """The names of the features for the image, its label and its file name."""

    image: str
    label: str | None
    name: str | None


def formats(builder: Any) -> list[str]:
    """Return the formats of a data set by its files, else by its description.

    The description names one format; files of another may have been added later.
    """
    files = [path.name for path in epath.Path(builder.data_path).iterdir()]
    found = [form for form in FORMATS if any(f".{form}-" in name for name in files)]
    return found or [form.value for form in builder.info.available_file_formats()]


def first_line(error: Exception) -> str:
    """Return the message of an error without the pages of context that tfds puts around it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rpartition('": ')[2]


def require_disk(data_dir: str | None) -> None:
    """Raise UserError for a bucket, where files cannot be written in pieces and renamed."""
    if data_dir is not None and "://" in data_dir:
        raise UserError(
            f"{data_dir} is a bucket, expected a folder on a disk. Copy the result to the bucket."
        )


class Prepared:
    """A data set on disk, read in the first of FORMATS that it has.

    Args:
      builder: A builder of tensorflow_datasets; UserError if its data set has no image.
      reread: Read every record again, even if an earlier run has written an index.
    """

    def __init__(self, builder: Any, reread: bool = False):
        import tensorflow_datasets as tfds

        info, found = builder.info, formats(builder)
        self.format = next(form for form in FORMATS if form in found)
        if info.file_format.value != self.format:
            info.set_file_format(self.format, override=True, override_if_initialized=True)
        self.builder = builder
        self.splits = info.splits
        self.folder = str(builder.data_path)
        self.keys = _keys(tfds.features, info.features, builder.name)
        self._reread = reread
        self._decoders = {self.keys.image: tfds.decode.SkipDecoding()}
        self._indices: dict[str, dict[str, np.ndarray]] = {}

    def records(self, split: str) -> Any:
        """Return the records of a split by number: features by name, the image as encoded bytes.

        Raises UserError if a file is missing; for TFRecord also as `index`.
        """
        if self.splits[split].num_examples == 0:
            return []
        if self.format == "array_record":
            self._sizes(split)  # which fails if a file is missing
            return self.builder.as_data_source(split=split, decoders=self._decoders)
        files, index = self.splits[split].file_instructions, self.index(split)
        return TfRecords(
            Shards(self.folder),
            names=[file.basename() for file in files],
            shard=np.repeat(np.arange(len(files)), [file.take for file in files]),
            begin=index["begin"],
            length=index["length"],
            parse=self._parse,
        )

    def index(self, split: str) -> np.ndarray:
        """Return the index of a split. Reads every record if there is no index yet.

        Returns:
          [len], structured: `label` (int32, -1 without a label), `name` (bytes, empty without a
          file name), `begin` (byte of its file at which a TFRecord begins) and `length` (bytes of
          its content).

        Raises:
          UserError: A file is missing or damaged. The message names file and record.
        """
        owner = {str(file): base for base, info in self.splits.items() for file in info.filepaths}
        parts = []
        for file in self.splits[split].file_instructions:
            rows = self._index_of(owner[str(file.filename)])[str(file.filename)]
            parts.append(rows[file.skip : file.skip + file.take])
        return np.concatenate(parts)

    def label(self, record: dict[str, Any]) -> int:
        """Return the number of a record's class, -1 without a label."""
        return int(record[self.keys.label]) if self.keys.label else -1

    def _parse(self, content: bytes) -> dict[str, Any]:
        return self.builder.info.features.deserialize_example_np(content, decoders=self._decoders)

    def files(self, split: str) -> list[tuple[str, int]]:
        """Return the name and the bytes of each file of a split."""
        names = [epath.Path(path).name for path in self.splits[split].filepaths]
        return list(zip(names, self._sizes(split), strict=True))

    def _sizes(self, split: str) -> list[int]:
        """Return the bytes of each file of a split."""
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                files = map(epath.Path, self.splits[split].filepaths)
                return list(pool.map(lambda file: file.stat().length, files))
        except OSError as error:
            raise UserError(f"{self.builder.name}:{split} lacks a file: {error}") from error

    def _index_of(self, base: str) -> dict[str, np.ndarray]:
        """Return the index of a whole split, by file."""
        if base not in self._indices:
            path = epath.Path(self.folder) / f"occinv-{base}-{self.format}.npz"
            sizes = self._sizes(base)
            index = None if self._reread else _load(path, sizes)
            if index is None:
                index = self._read_all(base, sizes)
                _save(path, sizes, index)
            of_files = np.split(index, np.cumsum(self.splits[base].shard_lengths)[:-1])
            files = map(str, self.splits[base].filepaths)
            self._indices[base] = dict(zip(files, of_files, strict=True))
        return self._indices[base]

    def _read_all(self, base: str, sizes: list[int]) -> np.ndarray:
        """Make the index of a whole split from all its records."""
        logger.info("%s:%s: reading every record once", self.builder.name, base)
        info = self.splits[base]
        shards = Shards(self.folder)

        def contents(file: str, size: int) -> Iterator[tuple[int, bytes]]:
            if self.format == "tfrecord":
                yield from shards.records(epath.Path(file).name, size)
            else:
                with ArrayRecordDataSource([file]) as records:
                    yield from ((0, records[number]) for number in range(len(records)))

        def rows(file: str, length: int, size: int) -> list[tuple[int, bytes, int, int]]:
            found = []
            try:
                for begin, content in contents(file, size):
                    record = self._parse(content)
                    name = record[self.keys.name] if self.keys.name else b""
                    found.append((self.label(record), name, begin, len(content)))
                if len(found) != length:
                    raise Damaged(f"it has {len(found)} records, expected {length}")
            except Exception as error:  # array_record raises several types
                raise UserError(
                    f"{file} is damaged at record {len(found)}: {first_line(error)}. Prepare the "
                    "data set again."
                ) from error
            return found

        with ThreadPoolExecutor(_READERS) as pool:
            of_files = pool.map(rows, map(str, info.filepaths), info.shard_lengths, sizes)
            found = list(itertools.chain.from_iterable(of_files))
        width = max(1, *(len(name) for _, name, _, _ in found))
        columns = [("label", "i4"), ("name", f"S{width}"), ("begin", "i8"), ("length", "i8")]
        return np.array(found, columns)


def _keys(kinds: Any, features: Any, name: str) -> Keys:
    images = [key for key in features if isinstance(features[key], kinds.Image)]
    if not images:
        raise UserError(f"tfds:{name} has no image, only {', '.join(features)}")
    labels = [key for key in features if isinstance(features[key], kinds.ClassLabel)]
    return Keys(
        image="image" if "image" in images else images[0],
        label="label" if "label" in labels else labels[0] if len(labels) == 1 else None,
        name=next((key for key in ("file_name", "filename") if key in features), None),
    )


def _load(path: epath.Path, sizes: list[int]) -> np.ndarray | None:
    """Return the index in a file, if it is whole and of files of these sizes in bytes."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as found:
            return found["index"] if np.array_equal(found["sizes"], sizes) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # missing or incomplete


def _save(path: epath.Path, sizes: list[int], index: np.ndarray) -> None:
    """Write an index whole or not at all, even if several processes write it now."""
    written = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        content = io.BytesIO()
        np.savez(content, sizes=np.array(sizes), index=index)
        written.write_bytes(content.getvalue())
        written.replace(path)
    except OSError as error:
        logger.warning("%s cannot be written, so each run reads all records: %s", path, error)
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)
