"""Converts a data set of TFRecord files to ArrayRecord: `occinv data convert`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from occinv.data.tfds.prepared import first_line, require_disk
from occinv.data.tfds.tfrecord import Damaged, Shards
from occinv.schema import UserError

_WRITERS = 8  # files converted at once; the work is reading and writing


def convert(source: str, data_dir: str) -> Iterator[str]:
    """Convert a prepared data set, file by file, and check the checksum of every record.

    The records keep their files and their order, so training on either gives the same batches.
    Everything is written into a folder `….converting`, which is renamed to the data set when it is
    whole. After an interruption the same call continues.

    Args:
      source: Folder of `dataset_info.json`, perhaps in a bucket. It is not changed.
      data_dir: Folder for the result, which becomes `NAME/VERSION` in it.

    Yields:
      The path of each file written, and of the data set at the end.

    Raises:
      UserError: The source is not a TFRecord data set or is damaged, the result exists already, or
        the disk is full.
    """
    import tensorflow_datasets as tfds

    require_disk(data_dir)
    try:
        info = json.loads((epath.Path(source) / "dataset_info.json").read_text())
        builder = tfds.builder_from_directory(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source!r} is not a prepared data set: {first_line(error)}") from error
    if (found := builder.info.file_format.value) != "tfrecord":
        raise UserError(f"{source!r} has the format {found}, expected tfrecord")
    target = Path(data_dir, builder.info.full_name)
    if target.exists():
        raise UserError(f"{target} exists already. Move it away to convert again.")
    try:
        yield from _write(source, builder, info, target)
    except Damaged as error:
        raise UserError(f"{source} is damaged: {error}") from error
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeError for a full disk
        raise UserError(f"{target} cannot be written: {first_line(error)}") from error
    yield str(target)


def _write(source: str, builder: Any, info: dict[str, Any], target: Path) -> Iterator[str]:
    begun = target.with_name(f"{target.name}.converting")
    described = begun / "dataset_info.json"
    description = json.dumps(info | {"fileFormat": "array_record"}, indent=2)
    if begun.exists() and not (described.is_file() and described.read_text() == description):
        shutil.rmtree(begun)  # of another source
    begun.mkdir(parents=True, exist_ok=True)
    described.write_text(description)

    shards = Shards(source)

    def convert_file(file: epath.Path, length: int) -> str | None:
        written = begun / file.name.replace(".tfrecord", ".array_record")
        if written.exists():
            return None
        part = written.with_name(f"{written.name}.part")
        writer = ArrayRecordWriter(str(part), "group_size:1")  # as tensorflow_datasets writes
        count = 0
        for _, content in shards.records(file.name, file.stat().length):
            writer.write(content)
            count += 1
        writer.close()
        if count != length:
            raise Damaged(f"{file.name} has {count} records, expected {length}")
        os.replace(part, written)
        return str(written)

    splits = builder.info.splits.values()
    files = [epath.Path(file) for split in splits for file in split.filepaths]
    lengths = [length for split in splits for length in split.shard_lengths]
    with ThreadPoolExecutor(_WRITERS) as pool:
        yield from filter(None, pool.map(convert_file, files, lengths))
    copied = {file.name for file in files} | {"dataset_info.json"}
    for path in epath.Path(source).iterdir():  # features.json and class names
        if path.is_file() and path.name not in copied and not path.name.startswith("occinv-"):
            (begun / path.name).write_bytes(path.read_bytes())
    os.replace(begun, target)
