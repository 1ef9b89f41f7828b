"""Data sets prepared by tensorflow_datasets as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import functools
import io
import logging
import re
from typing import Any

import numpy as np

from occinv.data.decode import decode_rgb
from occinv.data.sample import DecodeError, Sample
from occinv.schema import UserError, nearest

logger = logging.getLogger("occinv.data")


class TensorflowDatasetsSource:
    """One split of a prepared data set. See occinv.data.sample.Source."""

    def __init__(
        self,
        name: str,
        records: Any,
        image_key: str,
        label_key: str | None,
        classes: tuple[str, ...],
    ):
        self.name = name
        self.classes = classes
        self._records = records
        self._image_key = image_key
        self._label_key = label_key

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [len]. Reads every record once, at the first use: minutes for ImageNet."""
        if self._label_key is None:
            return np.full(len(self), -1, np.int32)
        logger.info("%s: reading the labels of %d records", self.name, len(self))
        return np.asarray([self._records[i][self._label_key] for i in range(len(self))], np.int32)

    def where(self, index: int) -> str:
        """The record's number in its split."""
        return f"record {index}"

    def read(self, index: int) -> Sample:
        """The decoded image as PIL RGB. Raises DecodeError naming the data set and the record."""
        try:
            record = self._records[index]
            # The bytes as stored, decoded as every other source decodes: upright, CMYK to RGB.
            image = decode_rgb(io.BytesIO(record[self._image_key]))
        except MemoryError:
            raise
        except Exception as error:
            raise DecodeError(f"record {index} of {self.name}", index, error) from error
        label = -1 if self._label_key is None else int(record[self._label_key])
        return Sample(image, label, index)


def open_tensorflow_datasets(
    spec: str, *, train: bool, data_dir: str | None = None
) -> TensorflowDatasetsSource:
    """Opens `NAME[:SPLIT]`, where NAME may be `name/config` and may end in `:1.0.0`, a version.

    Without a split, training takes `train` and evaluation `validation`, else `test`. Slices such
    as `train[:10%]` are splits too. Nothing is downloaded and no network is asked: a data set that
    is not on disk is an error at once.

    data_dir: where data sets lie; None for TFDS_DATA_DIR or ~/tensorflow_datasets.
    Raises: UserError for an unknown name or split, a data set that is not prepared (with the
    command that prepares it), is in no random-access format, or has no image.
    """
    import tensorflow_datasets as tfds  # seconds to import, and only needed here

    name, _, rest = spec.partition(":")
    if version := re.match(r"\d+\.\d+\.\d+(?::|$)", rest):
        name, rest = f"{name}:{version[0].rstrip(':')}", rest[version.end() :]
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)  # those would ask the network
        base = re.split("[/:]", name)[0]
        raise UserError(
            f"tfds:{spec}: no data set {base!r}"
            + _nearest_of_many(base, known, "tfds.list_builders() lists them")
        ) from error
    except (ValueError, AssertionError, KeyError, RuntimeError) as error:  # config, version
        base, _, config = name.partition(":")[0].partition("/")
        reason = _first_line(error)
        if config and base in tfds.list_builders(with_community_datasets=False):
            known = list(tfds.builder_cls(base).builder_configs)
            if config not in known:
                reason = f"no config {config!r}{nearest(config, known)}"
        raise UserError(f"tfds:{spec}: cannot open {name!r}: {reason}") from error

    # The directory may hold another format beside ArrayRecord, so ask for what is there.
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if not builder.info.splits or "array_record" not in formats:
        other = ", ".join(sorted(formats - {"array_record"}))
        found = f" as array_record (only as {other})" if builder.info.splits and other else ""
        argument = "" if data_dir is None else f", data_dir={str(data_dir)!r}"
        raise UserError(
            f"tfds:{spec}: {name!r} is not prepared{found} in {builder.data_path}. Prepare it with "
            f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{argument}, '
            "file_format='array_record').download_and_prepare()\" "
            "(many data sets need tensorflow for that: pip install 'occinv[tf]')"
        )
    return _open_split(tfds, builder, name, rest or _default_split(builder, train))


def _default_split(builder: Any, train: bool) -> str:
    wanted = ("train",) if train else ("validation", "test")
    for split in wanted:
        if split in builder.info.splits:
            return split
    raise UserError(
        f"tfds:{builder.name} has no split {' or '.join(map(repr, wanted))}: name one of "
        f"{', '.join(builder.info.splits)}, as in tfds:{builder.name}:SPLIT"
    )


def _open_split(tfds: Any, builder: Any, name: str, split: str) -> TensorflowDatasetsSource:
    features = builder.info.features
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    if not images:
        raise UserError(f"tfds:{name} has no image, only {', '.join(features)}")
    image_key = "image" if "image" in images else images[0]
    labels = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
    label_key = "label" if "label" in labels else labels[0] if len(labels) == 1 else None
    classes = tuple(features[label_key].names) if label_key else ()
    try:
        records = builder.as_data_source(
            split=split, decoders={image_key: tfds.decode.SkipDecoding()}
        )
        count = len(records)
    except (ValueError, KeyError, AssertionError) as error:
        base = re.split(r"[\[+]", split)[0]
        known = base in builder.info.splits
        reason = f": {_first_line(error)}" if known else nearest(base, builder.info.splits)
        raise UserError(f"tfds:{name}: cannot open split {split!r}{reason}") from error
    if count == 0:
        raise UserError(f"tfds:{name}:{split} is empty")
    return TensorflowDatasetsSource(f"tfds:{name}:{split}", records, image_key, label_key, classes)


def _nearest_of_many(word: str, choices: list[str], otherwise: str) -> str:
    """As `nearest`, for choices that are too many to list."""
    hint = nearest(word, choices)
    return hint if "did you mean" in hint else f" ({otherwise})"


def _first_line(error: Exception) -> str:
    # tfds puts pages of context below it.
    return (str(error).strip() or type(error).__name__).splitlines()[0]
