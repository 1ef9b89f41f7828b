"""Open the image source that `data.source` names."""

from __future__ import annotations

from occinv.data.source import Source
from occinv.schema import UserError, nearest
from occinv.text import is_utf8

KINDS = ("photos", "digits", "folder", "arrow", "tfds")
FORMS = "photos, photos:TILE, digits, folder:PATH, arrow:PATH, tfds:NAME[:SPLIT] or module:Class"


def open_source(
    spec: str, *, train: bool, data_dir: str | None = None, classes: str | None = None
) -> Source:
    """Open `photos[:TILE]`, `digits`, `folder:PATH`, `arrow:PATH`, `tfds:NAME…` or `module:Class`.

    Args:
      spec: As in `data.source`.
      train: Open the images for training; else those for validation, if the data set has both.
      data_dir: The folder of tensorflow_datasets; only for `tfds:`.
      classes: The classes to keep, see `selections.of_classes`; None keeps all.

    Raises:
      UserError: The source cannot be opened; see the function of each kind.
    """
    if not is_utf8(spec):
        raise UserError(f"data.source={spec!r} is not UTF-8. Rename the folder.")
    # Each kind is imported only if it is used: tensorflow_datasets alone takes seconds.
    kind, colon, rest = spec.partition(":")
    source: Source
    if kind == "photos" and (not colon or rest.isdecimal()):
        from occinv.data.embedded import photos

        source = photos(train, int(rest) if colon else 32)
    elif spec == "digits":
        from occinv.data.embedded import digits

        source = digits(train)
    elif kind == "folder" and rest:
        from occinv.data.folder import open_folder

        source = open_folder(rest, train=train)
    elif kind == "arrow" and rest:
        from occinv.data.arrow import open_arrow

        source = open_arrow(rest, train=train)
    elif kind == "tfds" and rest:
        from occinv.data.tfds.source import open_tensorflow_datasets

        source = open_tensorflow_datasets(rest, train=train, data_dir=data_dir)
    elif kind not in KINDS and rest and all(part.isidentifier() for part in kind.split(".")):
        from occinv.data.own_source import open_own

        source = open_own(spec, train=train)
    else:
        hint = "" if kind in KINDS else nearest(kind, KINDS)
        raise UserError(f"data.source={spec!r}, expected {FORMS}{hint}")
    if classes is None:
        return source
    from occinv.data.selections import of_classes

    return of_classes(source, classes)
