"""A data source of one's own: `data.source=module:Class`."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from occinv.data.source import Source
from occinv.schema import UserError, find_class, nearest
from occinv.text import printable


def open_own(spec: str, *, train: bool) -> Source:
    """Open `module:Class` or `module:Class:ARGUMENT`.

    The class is called as `Class(train=…)` or `Class(ARGUMENT, train=…)`.

    Raises:
      UserError: The class cannot be imported, is not a Source, does not take these arguments, or
        its images, labels and names do not fit together.
    """
    _, name, *argument = spec.split(":", 2)
    found = own_class(spec, "data.source")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise UserError(f"data.source={spec!r}: {name} does not define {missing}")
    try:
        inspect.signature(found).bind(*argument, train=train)
    except TypeError as error:
        given = ", ".join([*map(repr, argument), f"train={train}"])
        raise UserError(f"data.source={spec!r}: {name}({given}) is wrong: {error}") from error
    try:
        source = found(*argument, train=train)
    except OSError as error:
        raise UserError(f"data.source={spec!r} cannot be opened: {error}") from error
    _check(source, f"data.source={spec!r}: ")
    return source


def own_class(spec: str, field: str) -> Any:
    """Return the class of `module:Class` or `module:Class:ARGUMENT`, which `field` names.

    Raises:
      UserError: The class cannot be imported, or is not a Source.
    """
    module, name, *_ = spec.split(":", 2)
    try:
        return find_class({}, f"{module}:{name}", Source, f"{field}=")
    except UserError as error:
        from occinv.data.open_source import KINDS

        raise UserError(f"{error}{nearest(module, KINDS)}") from error


def _check(source: Source, where: str) -> None:
    """Raise UserError unless the attributes of a source fit together."""
    for name in ("name", "classes", "labels"):
        if not hasattr(source, name):
            raise UserError(
                f"{where}it has no attribute {name!r}; see Source in occinv.data.source"
            )
    count, labels = len(source), np.asarray(source.labels)
    if count < 1:
        raise UserError(f"{where}it has no image, expected one or more")
    if labels.shape != (count,) or labels.dtype != np.int32:
        raise UserError(
            f"{where}labels are {labels.dtype} {list(labels.shape)}, expected int32 [{count}]"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < -1 or high >= len(source.classes):
        raise UserError(
            f"{where}labels are {low} to {high}, expected 0 to {len(source.classes) - 1} for its "
            f"{len(source.classes)} classes, or -1"
        )
    if len(source.names) not in (0, count):
        raise UserError(f"{where}it has {len(source.names)} names, expected {count} or none")
    source.classes = tuple(map(printable, source.classes))
