"""Open the image source that `data.source` names."""

from __future__ import annotations

import os

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
    check_source(spec)
    # Each kind is imported only if it is used: tensorflow_datasets alone takes seconds.
    kind, colon, rest = spec.partition(":")
    source: Source
    if kind == "photos":
        from occinv.data.embedded import photos

        source = photos(train, int(rest) if colon else 32)
    elif kind == "digits":
        from occinv.data.embedded import digits

        source = digits(train)
    elif kind == "folder":
        from occinv.data.folder import open_folder

        source = open_folder(rest, train=train)
    elif kind == "arrow":
        from occinv.data.arrow import open_arrow

        source = open_arrow(rest, train=train)
    elif kind == "tfds":
        from occinv.data.tfds.source import open_tensorflow_datasets

        source = open_tensorflow_datasets(rest, train=train, data_dir=data_dir)
    else:
        from occinv.data.own_source import open_own

        source = open_own(spec, train=train)
    if classes is None:
        return source
    from occinv.data.selections import of_classes

    return of_classes(source, classes)


def check_source(spec: str, field: str = "data.source") -> None:
    """Check the form of a source, and import the class of `module:Class`. Opens no data.

    Args:
      spec: As in `data.source`.
      field: The field that names it, for messages.

    Raises:
      UserError: The source has another form, or the class cannot be imported.
    """
    if not is_utf8(spec):
        raise UserError(f"{field}={spec!r} is not UTF-8. Rename the folder.")
    kind, colon, rest = spec.partition(":")
    if kind in KINDS:
        takes = {"photos": not colon or rest.isdecimal(), "digits": not colon}
        if not takes.get(kind, bool(rest)):
            raise UserError(f"{field}={spec!r}, expected {FORMS}")
    elif os.path.isdir(os.path.expanduser(spec)):
        raise UserError(f"{field}={spec!r} is a folder. Write {field}=folder:{spec}")
    elif rest and all(part.isidentifier() for part in kind.split(".")):
        from occinv.data.own_source import own_class

        own_class(spec, field)
    else:
        raise UserError(f"{field}={spec!r}, expected {FORMS}{nearest(kind, KINDS)}")
