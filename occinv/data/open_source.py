"""`data.source`: from what the config says to a Source."""

from __future__ import annotations

from occinv.data.embedded import digits, photos
from occinv.data.folder import open_folder
from occinv.data.source import Source
from occinv.data.subset import of_classes
from occinv.data.tfds.source import open_tensorflow_datasets
from occinv.schema import UserError, nearest

KINDS = ("photos", "digits", "folder", "tfds")


def open_source(
    spec: str, *, train: bool, data_dir: str | None = None, classes: str | None = None
) -> Source:
    """Opens `photos[:TILE]`, `digits`, `folder:PATH` or `tfds:NAME[:SPLIT]`.

    train: the part to train on, else the held-out part, where the data set has both.
    data_dir: where tensorflow_datasets keeps its data sets; only for `tfds:`.
    classes: which of its classes; None: all. See selection.of_classes.
    Raises: UserError for anything that cannot be opened; see the functions of each kind.
    """
    opened = _open(spec, train, data_dir)
    return opened if classes is None else of_classes(opened, classes)


def _open(spec: str, train: bool, data_dir: str | None) -> Source:
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
