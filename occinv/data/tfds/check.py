"""Checks that a prepared data set is whole: `occinv data check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from occinv.data.crop import center_crop
from occinv.data.tfds.source import TensorflowDatasetsSource, open_all
from occinv.schema import UserError, nearest

PUBLISHED = {"imagenet2012": {"train": 1281167, "validation": 50000}}
TILE = 64  # pixels a side on the contact sheet


def check(name: str, data_dir: str | None, expect: Mapping[str, int] | None) -> Iterator[str]:
    """Read every record of a prepared data set once, and decode one image of each class.

    The index made on the way is kept for training. The decoded images are written to a contact
    sheet beside the data, class by class from left to right.

    Args:
      name: As in `tfds:NAME`.
      data_dir: Folder of data sets.
      expect: Number of images in each split; None is the published number, if it is known.

    Yields:
      What was found, line by line.

    Raises:
      UserError: A record is damaged (the message names file and record), or a split has another
        number of images.
    """
    sources = open_all(name, data_dir)
    expect = PUBLISHED.get(name, {}) if expect is None else expect
    for split in expect:
        if split not in sources:
            raise UserError(f"{name} has no split {split!r}{nearest(split, sources)}")
    wrong = []
    for split, source in sources.items():
        labels, count = source.labels, len(source)  # labels read every record
        yield f"{source.name}: {count:,} images, every record is whole"
        if expect.get(split, count) != count:
            wrong.append(f"{split} has {count:,} images, expected {expect[split]:,}")
        if source.classes and (labels >= 0).any():
            yield from _check_classes(source, Path(source.folder) / f"occinv-{split}-classes.png")
    if wrong:
        raise UserError(f"{name}: {', '.join(wrong)}. Pass --expect to expect other numbers.")


def _check_classes(source: TensorflowDatasetsSource, sheet: Path) -> Iterator[str]:
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.classes))
    some = counts[counts > 0]
    yield f"  {len(some)} of {len(counts)} classes, {some.min()} to {some.max()} images each"
    empty = [name for name, count in zip(source.classes, counts, strict=True) if count == 0]
    if empty:
        more = f" and {len(empty) - 10} more" if len(empty) > 10 else ""
        yield f"  no image of {', '.join(empty[:10])}{more}"
    labels, first = np.unique(source.labels, return_index=True)
    tiles = [center_crop(source.read(int(index)).image, TILE, 1.0) for index in first[labels >= 0]]
    across = int(np.ceil(np.sqrt(len(tiles))))
    tiles += [np.full((TILE, TILE, 3), 255, np.uint8)] * (-len(tiles) % across)
    rows = [np.hstack(tiles[first : first + across]) for first in range(0, len(tiles), across)]
    Image.fromarray(np.vstack(rows)).save(sheet)
    yield f"  one decoded image of each: {sheet}"
