"""Data sets that Hugging Face `datasets` saved to disk: `arrow:PATH`. Only pyarrow is needed.

`Dataset.save_to_disk` writes the images as stored, encoded, in Arrow streams. They are mapped into
memory, so that reading one image touches no other.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from occinv.data.decode import decode_rgb
from occinv.data.source import Reduction, Sample, Source, decoding
from occinv.schema import UserError
from occinv.text import printable

VALIDATION = ("validation", "val", "valid", "test")  # the first that exists is used


# What damaged files raise.
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class ArrowSource(Source):
    """One saved `datasets.Dataset`. See occinv.data.source.Source.

    Args:
      folder: Its folder, with `state.json` and `dataset_info.json`.

    Raises:
      UserError: A file is missing or damaged, or there is no column of images.
    """

    def __init__(self, folder: Path):
        self.name = f"arrow:{printable(str(folder))}"
        self.folder = folder
        try:
            self._open(folder)
        except (*DAMAGED, pa.ArrowException) as error:
            raise UserError(
                f"{self.name} is not a data set of save_to_disk: {printable(str(error))}"
            ) from error

    def _open(self, folder: Path) -> None:
        features = json.loads((folder / "dataset_info.json").read_text())["features"]
        state = json.loads((folder / "state.json").read_text())
        self._files = [folder / file["filename"] for file in state["_data_files"]]
        tables = [pa.ipc.open_stream(pa.memory_map(str(f))).read_all() for f in self._files]
        image = _column(features, "Image", "image")
        label = _column(features, "ClassLabel", "label")
        if image is None or not sum(table.num_rows for table in tables):
            raise UserError(f"{self.name} has no image, expected a column of datasets.Image")
        columns = [table.column(image).chunks for table in tables]
        self._chunks = [chunk.field("bytes") for chunk in itertools.chain.from_iterable(columns)]
        self._starts = [0, *itertools.accumulate(map(len, self._chunks))]
        self.classes = () if label is None else tuple(map(printable, features[label]["names"]))
        self.labels = np.full(len(self), -1, np.int32)
        if label is not None:
            numbers = [table.column(label).fill_null(-1).to_numpy() for table in tables]
            self.labels = np.concatenate(numbers).astype(np.int32)
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < -1 or high >= max(1, len(self.classes)):
            raise UserError(
                f"{self.name} has labels from {low} to {high}, expected 0 to "
                f"{len(self.classes) - 1} for its {len(self.classes)} classes, or -1"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowSource, (self.folder,)  # a copy maps the files, too

    def __len__(self) -> int:
        return self._starts[-1]

    def files(self) -> Iterator[str]:
        """Yield the name and bytes of each file."""
        return (f"{printable(file.name)}\t{file.stat().st_size}\t" for file in self._files)

    def read(self, index: int, reduction: Reduction | None = None) -> Sample:
        """Decode the image. Raises DecodeError with the data set and the row."""
        name = f"row {index} of {self.name}"
        with decoding(name, index):
            chunk = bisect.bisect_right(self._starts, index) - 1
            content = self._chunks[chunk][index - self._starts[chunk]].as_py()
            if content is None:
                raise ValueError("the data set holds only its path; save it with the bytes")
            return Sample(decode_rgb(content, name, reduction), int(self.labels[index]), index)


def open_arrow(path: str, *, train: bool) -> ArrowSource:
    """Open `arrow:PATH`, the folder of a saved `Dataset` or `DatasetDict`.

    Of a `DatasetDict`, training uses the split `train`, and evaluation the first of VALIDATION.
    Otherwise both have the same images and the same `name`.

    Raises:
      UserError: There is no such data set, or it has no split `train`, or it cannot be read.
    """
    root = Path(path).expanduser()
    try:
        splits = list(json.loads((root / "dataset_dict.json").read_text())["splits"])
    except FileNotFoundError:
        return ArrowSource(root)
    except DAMAGED as error:
        raise UserError(
            f"{printable(str(root))}/dataset_dict.json is damaged: {error!r}"
        ) from error
    if "train" not in splits:
        shown = ", ".join(f"arrow:{printable(str(root / split))}" for split in splits)
        raise UserError(f"arrow:{printable(str(root))} has no split 'train'. Use {shown}.")
    validation = [split for split in VALIDATION if split in splits]
    return ArrowSource(root / ("train" if train or not validation else validation[0]))


def _column(features: dict[str, Any], kind: str, preferred: str) -> str | None:
    """Return the column of a kind: the preferred one, else the only one."""
    found = [name for name, feature in features.items() if _kind(feature) == kind]
    return preferred if preferred in found else found[0] if len(found) == 1 else None


def _kind(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None
