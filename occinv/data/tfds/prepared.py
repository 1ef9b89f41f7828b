"""A data set that tensorflow_datasets has prepared: its records by number, in either format.

ArrayRecord has random access of its own, through `as_data_source`. For TFRecord see tfrecord.py.
What takes a pass over all records to find out (labels, names of files, where a TFRecord begins) is
noted beside the data set when it is first needed, and read from there from then on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import logging
import uuid
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from occinv.data.tfds.tfrecord import Damaged, Shards, TfRecords
from occinv.schema import UserError

logger = logging.getLogger("occinv.data")

FORMATS = ("array_record", "tfrecord")  # the first that is there is read
_READERS = 32  # files under way when all are read: enough to hide the latency of a bucket


class Keys(NamedTuple):
    """Which features of a record are the image, its label and the name of its file."""

    image: str
    label: str | None
    name: str | None


@dataclasses.dataclass(frozen=True)
class Notes:
    """What a pass over one split of a data set has found, by record.

    label: int32 [len], -1 where there is none.  name: bytes [len], empty where there is none.
    shard, begin, length: int64 [len], the number of its file, where it begins there and the length
      of its content, in bytes; all 0 for ArrayRecord, which knows itself.
    """

    label: np.ndarray
    name: np.ndarray
    shard: np.ndarray
    begin: np.ndarray
    length: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Notes:
        return Notes(*(column[rows] for column in vars(self).values()))


def formats(builder: Any) -> list[str]:
    """The formats of the files of a data set, by their names, else what its description says.

    The description knows one of them; another may have been put beside it since.
    """
    files = [path.name for path in epath.Path(builder.data_path).iterdir()]
    found = [form for form in FORMATS if any(f".{form}-" in name for name in files)]
    return found or [form.value for form in builder.info.available_file_formats()]


def require_disk(data_dir: str | None) -> None:
    """Raises UserError for a bucket, where files cannot be written bit by bit and renamed."""
    if data_dir is not None and "://" in data_dir:
        raise UserError(
            f"{data_dir} is a bucket, expected a folder on a disk: copy the result there"
        )


class Prepared:
    """A data set on disk, read in the first of FORMATS that is there.

    builder: of tensorflow_datasets.
    Raises: UserError where it has no image.
    """

    def __init__(self, builder: Any):
        import tensorflow_datasets as tfds

        info = builder.info
        there = formats(builder)
        self.format = next(file_format for file_format in FORMATS if file_format in there)
        if info.file_format.value != self.format:
            info.set_file_format(self.format, override=True, override_if_initialized=True)
        self.builder = builder
        self.folder = str(builder.data_path)
        self.keys = _keys(tfds.features, info.features, builder.name)
        self._decoders = {self.keys.image: tfds.decode.SkipDecoding()}
        self._made: dict[str, Notes] = {}  # since this was opened

    def records(self, split: str) -> Any:
        """The records of a split by number: features by name, the image as encoded bytes.

        Raises: UserError where a file is missing; for TFRecord also as `notes`.
        """
        if self.builder.info.splits[split].num_examples == 0:
            return []
        if self.format == "array_record":
            for base in {base for base, _ in self._parts(split)}:
                self._sizes(base)  # all of them are there
            return self.builder.as_data_source(split=split, decoders=self._decoders)
        notes = self.notes(split)
        names = [path.name for base, _ in self._parts(split) for path in self.files(base)]
        columns = (notes.shard, notes.begin, notes.length)
        return TfRecords(self._shards, names, *columns, self._parse)

    def notes(self, split: str, anew: bool = False) -> Notes:
        """The notes on the records of a split.

        anew: not those that an earlier run may have kept.

        Raises: UserError naming the file and the record, where the data set is damaged.
        """
        parts, before = [], 0
        for base, rows in self._parts(split):
            part = self._note(base, anew)[rows]
            parts.append(dataclasses.replace(part, shard=part.shard + before))
            before += len(self.files(base))
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Notes(*map(np.concatenate, columns))

    def files(self, base: str) -> list[epath.Path]:
        """The files of a whole split."""
        return [epath.Path(path) for path in self.builder.info.splits[base].filepaths]

    def label(self, record: dict[str, Any]) -> int:
        """The number of a record's class, -1 where there is none."""
        return int(record[self.keys.label]) if self.keys.label else -1

    @functools.cached_property
    def _shards(self) -> Shards:
        return Shards(self.folder)

    def _parse(self, content: bytes) -> dict[str, Any]:
        return self.builder.info.features.deserialize_example_np(content, decoders=self._decoders)

    def _parts(self, split: str) -> list[tuple[str, np.ndarray]]:
        """Whole splits, and which of their records `split` has, in order; `a[:9]+b` has two."""
        splits = self.builder.info.splits
        owners = {
            str(path): (base, int(start))
            for base, info in splits.items()
            for path, start in zip(info.filepaths, _starts(info.shard_lengths), strict=True)
        }

        def rows(file: Any) -> np.ndarray:
            first = owners[str(file.filename)][1] + file.skip
            return np.arange(first, first + file.take)

        files = itertools.groupby(
            splits[split].file_instructions, lambda file: owners[str(file.filename)][0]
        )
        return [(base, np.concatenate([rows(file) for file in of_base])) for base, of_base in files]

    def _sizes(self, base: str) -> list[int]:
        """Bytes of each file of a whole split."""
        try:
            with ThreadPoolExecutor(_READERS) as pool:
                return list(pool.map(lambda file: file.stat().length, self.files(base)))
        except OSError as error:
            raise UserError(f"{self.builder.name}:{base} is not whole: {error}") from error

    def _note(self, base: str, anew: bool) -> Notes:
        path = epath.Path(self.folder) / f"occinv-{base}-{self.format}.npz"
        if base in self._made:
            return self._made[base]
        sizes = self._sizes(base)
        kept = None if anew else _kept(path, sizes)
        if kept is not None:
            return kept
        logger.info("%s:%s: reading every record once", self.builder.name, base)
        make = self._note_tfrecord if self.format == "tfrecord" else self._note_array_record
        lengths = self.builder.info.splits[base].shard_lengths
        with ThreadPoolExecutor(_READERS) as pool:
            rows = list(pool.map(make, range(len(sizes)), self.files(base), lengths, sizes))
        label, name, *where = zip(*itertools.chain.from_iterable(rows), strict=True)
        notes = Notes(np.array(label, np.int32), np.array(name), *np.array(where, np.int64))
        _keep(path, sizes, notes)
        self._made[base] = notes
        return notes

    def _note_tfrecord(self, shard: int, file: epath.Path, length: int, size: int) -> list[_Row]:
        rows: list[_Row] = []
        try:
            for begin, content in self._shards.records(file.name, size):
                row = *self._label_and_name(content), shard, begin, len(content)
                rows.append(row)
            if len(rows) != length:
                raise Damaged(f"it has {len(rows)} records, expected {length}")
        except Exception as error:
            raise self._damaged(file, len(rows), error) from error
        return rows

    def _note_array_record(
        self, shard: int, file: epath.Path, length: int, size: int
    ) -> list[_Row]:
        rows: list[_Row] = []
        try:
            with ArrayRecordDataSource([str(file)]) as contents:
                if len(contents) != length:
                    raise Damaged(f"it has {len(contents)} records, expected {length}")
                for index in range(length):
                    rows.append((*self._label_and_name(contents[index]), 0, 0, 0))
        except Exception as error:  # array_record raises several types
            raise self._damaged(file, len(rows), error) from error
        return rows

    def _damaged(self, file: epath.Path, record: int, error: Exception) -> UserError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return UserError(f"{file} is damaged at record {record}: {reason}; prepare it again")

    def _label_and_name(self, content: bytes) -> tuple[int, bytes]:
        record = self._parse(content)
        return self.label(record), record[self.keys.name] if self.keys.name else b""


# A record's label, name, file, begin and length.
_Row = tuple[int, bytes, int, int, int]


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


def _starts(lengths: Sequence[int]) -> np.ndarray:
    """The number of the first record of each file."""
    return np.cumsum([0, *lengths[:-1]])


def _kept(path: epath.Path, sizes: list[int]) -> Notes | None:
    """The notes in a file, if they are whole and of files of these sizes in bytes."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as kept:
            if np.array_equal(kept["sizes"], sizes):
                return Notes(*(kept[field.name] for field in dataclasses.fields(Notes)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none yet, or none whole
    return None


def _keep(path: epath.Path, sizes: list[int], notes: Notes) -> None:
    """Writes them whole or not at all, whoever else may write them now."""
    written = path.with_name(f"{path.name}-{uuid.uuid4().hex}")
    try:
        content = io.BytesIO()
        np.savez(content, sizes=np.array(sizes), **vars(notes))
        written.write_bytes(content.getvalue())
        written.replace(path)
    except OSError as error:
        logger.warning("%s cannot be kept, so each run reads the records again: %s", path, error)
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)
