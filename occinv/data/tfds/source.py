"""Data sets prepared by tensorflow_datasets, read without TensorFlow: `tfds:NAME[:SPLIT]`."""

from __future__ import annotations

import functools
import io
import logging
import re
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from occinv.data.decode import Reduction, decode_rgb
from occinv.data.source import DecodeError, Sample
from occinv.data.tfds.prepared import FORMATS, Notes, Prepared, formats
from occinv.data.tfds.tfrecord import TfRecords
from occinv.schema import UserError, nearest

logger = logging.getLogger("occinv.data")


class TensorflowDatasetsSource:
    """One split of a prepared data set. See occinv.data.source.Source.

    Raises: as Prepared.records.
    """

    def __init__(self, name: str, prepared: Prepared, split: str, classes: tuple[str, ...]):
        self.name = name
        self.classes = classes
        self.folder = prepared.folder
        self._prepared = prepared
        self._split = split
        self._records = prepared.records(split)

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def _notes(self) -> Notes:
        return self._prepared.notes(self._split)

    @property
    def labels(self) -> np.ndarray:
        """int32 [len]. Reads every record once, if nobody has before: minutes for ImageNet."""
        return self._notes.label

    @functools.cached_property
    def names(self) -> list[str]:
        """What the files were called, where the data set tells; as slow as `labels`."""
        return (
            [name.decode() for name in self._notes.name.tolist()] if any(self._notes.name) else []
        )

    def read_through(self) -> None:
        """Reads every record, if opening it has not: see Prepared.notes for what this raises."""
        self._notes = self._prepared.notes(self._split, anew=True)

    def where(self, index: int) -> str:
        """The record's number in its split."""
        return f"record {index}"

    def expect(self, indices: Sequence[int]) -> None:
        """Records of a bucket are fetched together, for each alone takes long to come."""
        if isinstance(self._records, TfRecords):
            self._records.expect(indices)

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """The decoded image. Raises DecodeError naming the data set and the record."""
        name = f"record {index} of {self.name}"
        try:
            record = self._records[index]
            # The bytes as stored, decoded as every other source decodes: upright, CMYK to RGB.
            encoded = io.BytesIO(record[self._prepared.keys.image])
            image = decode_rgb(encoded, name, reduction)
        except MemoryError:
            raise
        except Exception as error:
            raise DecodeError(name, index, error) from error
        return Sample(image, self._prepared.label(record), index)


def open_tensorflow_datasets(
    spec: str, *, train: bool, data_dir: str | None = None
) -> TensorflowDatasetsSource:
    """Opens `NAME[:SPLIT]`, where NAME may be `name/config` and may end in `:1.0.0`, a version.

    Without a split, training takes `train` and evaluation `validation`, else `test`. Slices such
    as `train[:10%]` are splits too. Nothing is downloaded and no network is asked: a data set that
    is not on disk is an error at once.

    Of the two formats, ArrayRecord is taken where both are there, and the log says which.

    data_dir: where data sets lie, perhaps `gs://BUCKET/FOLDER`; None for TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    Raises: UserError for an unknown name or split, a data set that is not prepared (with the
    command that prepares it), is in another format, damaged, or has no image.
    """
    builder, name, rest = _open_builder(spec, data_dir)
    return _open_split(builder, name, rest or _default_split(builder, train))


def open_all(name: str, data_dir: str | None = None) -> dict[str, TensorflowDatasetsSource]:
    """Opens every split of a data set, by its name. Raises as `open_tensorflow_datasets`."""
    builder, name, _ = _open_builder(name, data_dir)
    return {split: _open_split(builder, name, split) for split in builder.info.splits}


def _open_builder(spec: str, data_dir: str | None) -> tuple[Any, str, str]:
    """The builder, its name with the version if one is asked for, and the rest of `spec`."""
    name, _, rest = spec.partition(":")
    if version := re.match(r"\d+\.\d+\.\d+(?::|$)", rest):
        name, rest = f"{name}:{version[0].rstrip(':')}", rest[version.end() :]
    builder = find_builder(name, data_dir)
    there = formats(builder) if builder.info.splits else []
    if not set(there) & set(FORMATS):
        found = f" in a format that is read, only as {', '.join(sorted(there))}" if there else ""
        argument = " --manual-dir DIR" if builder.MANUAL_DOWNLOAD_INSTRUCTIONS else ""
        argument += "" if data_dir is None else f" --data-dir {shlex.quote(str(data_dir))}"
        raise UserError(
            f"tfds:{name}: {name!r} is not prepared{found} in "
            f"{builder.data_path}. Prepare it with: occinv data prepare {name}{argument}"
        )
    return builder, name, rest


def find_builder(name: str, data_dir: str | None) -> Any:
    """The builder of a data set, prepared or not, by its name with perhaps `/config` and version.

    Raises: UserError where there is none such, or what it needs is not installed.
    """
    import tensorflow_datasets as tfds  # seconds to import, and only needed here

    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)  # those would ask the network
        base = re.split("[/:]", name)[0]
        raise UserError(
            f"tfds:{name}: no data set {base!r}"
            + (nearest(base, known) or " (tfds.list_builders() lists them)")
        ) from error
    except ImportError as error:  # a bucket, or a builder that wants TensorFlow
        hint = " (pip install 'occinv[gcs]')" if "gcsfs" in str(error) else ""
        reason = _first_line(error)
        raise UserError(f"cannot open {name!r}: {reason}{hint}") from error
    except (ValueError, AssertionError, KeyError, RuntimeError) as error:  # config, version
        base, _, config = name.partition(":")[0].partition("/")
        reason = _first_line(error)
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
        f"tfds:{builder.name} has no split {' or '.join(map(repr, wanted))}: name one of "
        f"{', '.join(builder.info.splits)}, as in tfds:{builder.name}:SPLIT"
    )


def _open_split(builder: Any, name: str, split: str) -> TensorflowDatasetsSource:
    prepared = Prepared(builder)
    spec = f"tfds:{name}:{split}"
    label = prepared.keys.label
    classes = tuple(builder.info.features[label].names) if label else ()
    try:
        source = TensorflowDatasetsSource(spec, prepared, split, classes)
    except (ValueError, KeyError, AssertionError) as error:
        base = re.split(r"[\[+]", split)[0]
        known = base in builder.info.splits
        reason = f": {_first_line(error)}" if known else nearest(base, builder.info.splits)
        raise UserError(f"tfds:{name}: cannot open split {split!r}{reason}") from error
    if len(source) == 0:
        raise UserError(f"{spec} is empty")
    logger.info("%s: %d images, read as %s", spec, len(source), prepared.format)
    return source


def _first_line(error: Exception) -> str:
    # tfds puts pages of context below it, and some before.
    return (str(error).strip() or type(error).__name__).splitlines()[0].rpartition('": ')[2]
