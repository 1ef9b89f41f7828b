"""A data set of TFRecord files as ArrayRecord: `occinv data convert`."""

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

from occinv.data.tfds.prepared import require_disk
from occinv.data.tfds.tfrecord import Damaged, Shards
from occinv.schema import UserError

_WRITERS = 8  # files under way; the work is reading and writing


def convert(source: str, data_dir: str) -> Iterator[str]:
    """Converts a prepared data set, file by file, and checks every record's checksum on the way.

    The records stay in their files and their order, so that training on either gives the very same
    batches. All is written into a folder `….converting`, which becomes the data set when it is
    whole; the same call goes on where an earlier one was stopped.

    source: the folder of `dataset_info.json`, perhaps in a bucket; stays as it is.
    data_dir: where tensorflow_datasets shall find the result, as `NAME/VERSION`.

    Yields: the path of each file that was written, and of the data set in the end.
    Raises: UserError for a source that is no such data set or is damaged, a result that is there
    already, and a disk that is full.
    """
    import tensorflow_datasets as tfds

    require_disk(data_dir)
    try:
        info = json.loads((epath.Path(source) / "dataset_info.json").read_text())
        builder = tfds.builder_from_directory(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source!r} is no prepared data set: {str(error).splitlines()[0]}"
        ) from error
    if (there := builder.info.file_format.value) != "tfrecord":
        raise UserError(f"{source!r} is of {there}, expected tfrecord")
    target = Path(data_dir, builder.info.full_name)
    if target.exists():
        raise UserError(f"{target} is there already")
    try:
        yield from _write(source, builder, info, target)
    except Damaged as error:
        raise UserError(f"{source} is damaged: {error}") from error
    except (OSError, RuntimeError) as error:  # array_record's, of a disk that is full
        raise UserError(f"{target} cannot be written: {str(error).splitlines()[0]}") from error
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
    files = [
        (epath.Path(file), length)
        for split in builder.info.splits.values()
        for file, length in zip(split.filepaths, split.shard_lengths, strict=True)
    ]

    def convert_file(of: tuple[Any, int]) -> str | None:
        file, length = of
        written = begun / file.name.replace(".tfrecord", ".array_record")
        if written.exists():
            return None
        part = written.with_name(f"{written.name}.part")
        writer = ArrayRecordWriter(str(part), "group_size:1")  # as tensorflow_datasets writes
        count = 0
        for record in shards.records(file.name, file.stat().length):
            writer.write(record.content)
            count += 1
        writer.close()
        if count != length:
            raise Damaged(f"{file.name} has {count} records, expected {length}")
        os.replace(part, written)
        return str(written)

    with ThreadPoolExecutor(_WRITERS) as pool:
        yield from filter(None, pool.map(convert_file, files))
    copied = {path.name for path, _ in files} | {"dataset_info.json"}
    for path in epath.Path(source).iterdir():  # features.json and names of classes
        if path.is_file() and path.name not in copied and not path.name.startswith("occinv-"):
            (begun / path.name).write_bytes(path.read_bytes())
    os.replace(begun, target)
