"""Data sets prepared by tensorflow_datasets: `tfds:NAME[:SPLIT]`. TensorFlow is not needed."""

from __future__ import annotations

import functools
import logging
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from occinv.data.decode import decode_rgb
from occinv.data.source import Reduction, Sample, Source, decoding
from occinv.data.tfds.prepared import FORMATS, Prepared, first_line, formats
from occinv.data.tfds.tfrecord import TfRecords
from occinv.paths import as_path, in_bucket
from occinv.schema import UserError, nearest
from occinv.text import printable

logger = logging.getLogger("occinv.data")


class TensorflowDatasetsSource(Source):
    """One split of a prepared data set. See occinv.data.source.Source."""

    def __init__(self, name: str, prepared: Prepared, split: str):
        label = prepared.keys.label
        self.name = name
        names = prepared.builder.info.features[label].names if label else ()
        self.classes = tuple(map(printable, names))
        self.folder = prepared.folder
        self._prepared = prepared
        self._split = split
        self._records = prepared.records(split)

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def labels(self) -> np.ndarray:  # type: ignore[override]
        """int32 [len]. The first run reads every record for it: minutes for ImageNet."""
        return self._prepared.index(self._split)["label"]

    @functools.cached_property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """File names, if the data set records them; as slow as `labels`."""
        names = self._prepared.index(self._split)["name"].tolist()
        return [name.decode(errors="backslashreplace") for name in names] if any(names) else []

    def files(self) -> Iterator[str]:
        """Yield the name and bytes of each record file."""
        return (f"{name}\t{size}\t" for name, size in self._prepared.files(self._split))

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start to read records of a bucket together, because each alone takes long."""
        if isinstance(self._records, TfRecords):
            self._records.prefetch(indices)

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Decode the image. Raises DecodeError with the data set and the record."""
        name = f"record {index} of {self.name}"
        with decoding(name, index):
            record = self._records[index]
            # Decode the stored bytes as every other source does: upright, CMYK to RGB.
            image = decode_rgb(record[self._prepared.keys.image], name, reduction)
            return Sample(image, self._prepared.label(record), index)


def open_tensorflow_datasets(
    spec: str, *, train: bool, data_dir: str | None = None
) -> TensorflowDatasetsSource:
    """Open `NAME[:SPLIT]` from disk or a bucket; nothing is downloaded.

    If both formats exist, ArrayRecord is read; the log says which.

    Args:
      spec: NAME may be `name/config` and may end in a version, as in `name:1.0.0`. SPLIT may be a
        slice such as `train[:10%]`. Without a split, training reads `train` and evaluation
        `validation`, else `test`.
      train: Choose the split for training.
      data_dir: Folder of data sets, perhaps `gs://BUCKET/FOLDER`; None is TFDS_DATA_DIR or
        ~/tensorflow_datasets.

    Raises:
      UserError: The name or split is unknown, or the data set is not prepared (the message has the
        command that prepares it), has another format, is damaged, or has no image.
    """
    builder, name, rest = _open_builder(spec, data_dir)
    return _open_split(Prepared(builder), name, rest or _default_split(builder, train))


def open_all(name: str, data_dir: str | None = None) -> dict[str, TensorflowDatasetsSource]:
    """Open every split of a data set, ignoring earlier indices. See `open_tensorflow_datasets`."""
    builder, name, _ = _open_builder(name, data_dir)
    prepared = Prepared(builder, reread=True)
    return {split: _open_split(prepared, name, split) for split in builder.info.splits}


def _open_builder(spec: str, data_dir: str | None) -> tuple[Any, str, str]:
    """Return the builder, its name with the version if one is given, and the rest of `spec`."""
    name, _, rest = spec.partition(":")
    if version := re.match(r"\d+\.\d+\.\d+(?::|$)", rest):
        name, rest = f"{name}:{version[0].rstrip(':')}", rest[version.end() :]
    builder = find_builder(name, data_dir)
    found = formats(builder) if builder.info.splits else []
    if not set(found) & set(FORMATS):
        only = f" as {' or '.join(FORMATS)}, only as {', '.join(sorted(found))}," if found else ""
        argument = " --manual-dir DIR" if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else ""
        argument += "" if data_dir is None else f" --data-dir {shlex.quote(str(data_dir))}"
        raise UserError(
            f"tfds:{name}: {name!r} is not prepared{only} in {builder.data_path}. "
            f"Prepare it with: occinv data prepare {name}{argument}"
        )
    return builder, name, rest


def find_builder(name: str, data_dir: str | None) -> Any:
    """Return the builder of a data set, prepared or not, by `NAME[/CONFIG][:VERSION]`.

    Raises UserError if there is no such data set, or a package that it needs is not installed.
    """
    import tensorflow_datasets as tfds  # takes seconds to import

    if data_dir is not None and in_bucket(data_dir):
        as_path(data_dir)  # raises UserError without gcsfs
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)  # the others need the network
        base = re.split("[/:]", name)[0]
        hint = nearest(base, known) or " (tfds.list_builders() lists them)"
        raise UserError(f"tfds:{name}: no data set {base!r}{hint}") from error
    except ImportError as error:  # a builder that needs TensorFlow
        raise UserError(f"cannot open {name!r}: {first_line(error)}") from error
    except (ValueError, AssertionError, KeyError, RuntimeError) as error:  # config, version
        base, _, config = name.partition(":")[0].partition("/")
        reason = first_line(error)
        if config and base in tfds.list_builders(with_community_datasets=False):
            known = list(tfds.builder_cls(base).builder_configs)
            if config not in known:
                reason = f"no config {config!r}{nearest(config, known)}"
        raise UserError(f"cannot open {name!r}: {reason}") from error


def _default_split(builder: Any, train: bool) -> str:
    wanted = ("train",) if train else ("validation", "test")
    for split in wanted:
        if split in builder.info.splits:
            return split
    raise UserError(
        f"tfds:{builder.name} has no split {' or '.join(map(repr, wanted))}. Name one of "
        f"{', '.join(builder.info.splits)}, as in tfds:{builder.name}:SPLIT"
    )


def _open_split(prepared: Prepared, name: str, split: str) -> TensorflowDatasetsSource:
    spec, splits = f"tfds:{name}:{split}", prepared.splits
    try:
        source = TensorflowDatasetsSource(spec, prepared, split)
    except (ValueError, KeyError, AssertionError) as error:
        base = re.split(r"[\[+]", split)[0]
        reason = f": {first_line(error)}" if base in splits else nearest(base, splits)
        raise UserError(f"tfds:{name}: cannot open split {split!r}{reason}") from error
    if len(source) == 0:
        raise UserError(f"{spec} is empty, expected at least one image")
    logger.info("%s: %d images, read as %s", spec, len(source), prepared.format)
    return source
