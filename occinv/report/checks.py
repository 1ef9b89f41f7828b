"""Checks of results that may come from a damaged file, or from somebody else."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from occinv.text import is_safe, one_line

if TYPE_CHECKING:
    from occinv.report.results import Column, Results


def is_valid(value: float, column: Column) -> bool:
    """Whether a number can be in a column: it is finite, and an accuracy is in [0, 1]."""
    return 0 <= value <= 1 if column.unit == "%" else math.isfinite(value)


def check_numbers(results: Results) -> None:
    """Raise ValueError for a number that no table can have."""
    from occinv.data.identity import unpack  # here, so that `occinv reproduce --help` stays fast

    count = results.settings.get("num_test", 1)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"settings.num_test is {count!r}, expected 1 or more")
    for row in results.rows:
        for column in results.columns:
            for value in row.values.get(column.key, ()):
                if not is_valid(value, column):
                    raise ValueError(f"{column.heading} of {row.name} is {value}")
        for hits in row.hits.values():
            for text in hits:
                unpack(text)


def without_control_codes(value: Any) -> Any:
    """Return results, or a part of them, with a space for each control code and line break.

    The configs of stages keep their lines. They are on the page only.
    """
    if isinstance(value, str):
        return value if is_safe(value) else one_line(value)
    if isinstance(value, dict):
        return {without_control_codes(k): without_control_codes(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_control_codes(each) for each in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    texts = {f.name: getattr(value, f.name) for f in fields(value) if f.name != "config"}
    return replace(value, **{name: without_control_codes(v) for name, v in texts.items()})
