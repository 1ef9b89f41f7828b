"""`data.source`: from what the config says to a Source, and a part of one."""

from __future__ import annotations

import numpy as np

from occinv.data.embedded import digits, photos
from occinv.data.folder import open_folder
from occinv.data.sample import Sample, Source
from occinv.data.tensorflow_datasets_source import open_tensorflow_datasets
from occinv.schema import UserError, nearest

KINDS = ("photos", "digits", "folder", "tfds")


def open_source(spec: str, *, train: bool, data_dir: str | None = None) -> Source:
    """Opens `photos[:TILE]`, `digits`, `folder:PATH` or `tfds:NAME[:SPLIT]`.

    train: the part to train on, else the held-out part, where the data set has both.
    data_dir: where tensorflow_datasets keeps its data sets; only for `tfds:`.
    Raises: UserError for anything that cannot be opened; see the functions of each kind.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "photos" and (not colon or rest.isdecimal()):
        return photos(train, int(rest) if colon else 32)
    if spec == "digits":
        return digits(train)
    if kind == "folder" and rest:
        return open_folder(rest, train=train)
    if kind == "tfds" and rest:
        return open_tensorflow_datasets(rest, train=train, data_dir=data_dir)
    hint = "" if kind in KINDS else nearest(kind, KINDS)
    raise UserError(
        f"data source {spec!r}: expected photos, photos:TILE, digits, folder:PATH or "
        f"tfds:NAME[:SPLIT]{hint}"
    )


class Subset:
    """Some images of another source. Samples keep the parent's index. See Source."""

    def __init__(self, parent: Source, chosen: np.ndarray):
        self.parent = parent
        self.chosen = chosen
        self.name = f"{len(chosen)} of {len(parent)} images of {parent.name}"
        self.classes = parent.classes
        self.labels = parent.labels[chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> Sample:
        """The parent's sample. Raises DecodeError."""
        return self.parent.read(int(self.chosen[index]))


def subset(
    source: Source,
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    seed: int = 0,
) -> Subset:
    """A class-balanced part of `source`, for training on few labels.

    Exactly one of `per_class` (images of each class) and `fraction` (of each class's images,
    rounded, at least one) is given. The choice depends on (seed, class) only and is nested: with
    one seed, a larger part contains the smaller ones. Unlabelled images count as one class.

    Raises: UserError when both or neither is given, `fraction` is not in (0, 1], or a class has
    fewer than `per_class` images.
    """
    if (per_class is None) == (fraction is None):
        raise UserError(f"give one of per_class ({per_class}) and fraction ({fraction})")
    if fraction is not None and not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}, expected a number above 0 and at most 1")
    labels = source.labels
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = per_class if fraction is None else max(1, round(fraction * len(members)))
        if count is None or not 1 <= count <= len(members):
            name = source.classes[label] if source.classes else "(unlabelled)"
            raise UserError(
                f"per_class is {count}, expected 1 to {len(members)}: class {name!r} of "
                f"{source.name} has {len(members)} images"
            )
        # Sorting raw bits, for the reason given in order.py.
        bits = np.random.Philox(np.random.SeedSequence([seed, int(label) + 1]))
        order = np.argsort(bits.random_raw(len(members)), kind="stable")
        chosen.append(members[order[:count]])
    return Subset(source, np.sort(np.concatenate(chosen)))
