"""The fields of config sections in words: type, range, default and meaning.

Everything comes from the dataclasses: types and ranges from the annotations, meanings from the
`Attributes:` of the docstrings.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from occinv.schema import Duration
from occinv.sections import dataclass_in, type_text


class Field(NamedTuple):
    """One field of a section.

    Attributes:
      path: The position in the config, such as `train.batch_size`.
      type: The type and range.
      default: The default, or `required`.
      meaning: The meaning, or an empty string if the docstring has none.
    """

    path: str
    type: str
    default: str
    meaning: str


def fields_of(
    cls: type, path: str = "", skip: tuple[str, ...] = (), defaults: Any = None
) -> Iterator[Field]:
    """Yield the fields of a dataclass, and after a field that is a section, its fields.

    Args:
      cls: The dataclass of the section.
      path: The position of the section in the config.
      skip: Fields that the program sets and a config may not name.
      defaults: An instance that has the defaults; None: those of the class.
    """
    hints, texts = typing.get_type_hints(cls, include_extras=True), meanings(cls)
    for field in dataclasses.fields(cls):
        if not field.init or field.name in skip:
            continue
        default: Any = field.default
        if defaults is not None:
            default = getattr(defaults, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        hint, place = hints[field.name], f"{path}.{field.name}" if path else field.name
        shown = "required" if default is dataclasses.MISSING else show(default)
        yield Field(place, type_text(hint), shown, texts.get(field.name, ""))
        section = section_of(hint)
        if section is not None:
            inner = default if isinstance(default, section) else None
            yield from fields_of(section, place, defaults=inner)


def meanings(cls: type) -> dict[str, str]:
    """Return the meaning of each field, from the metadata `help` or the `Attributes:` of `cls`."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, text = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        text = re.split(r"\n(?=\S)", text)[0]
        for name, meaning in re.findall(r"^  (\w+): (.*(?:\n {4,}.*)*)", text, re.MULTILINE):
            found[name] = re.sub(r"\s+", " ", meaning).strip()
    helps = {f.name: f.metadata["help"] for f in dataclasses.fields(cls) if "help" in f.metadata}
    return found | helps


def section_of(hint: Any) -> type | None:
    """Return the dataclass in a type such as `Appearance | None`; a Duration is not a section."""
    found = dataclass_in(hint)
    return None if found is Duration else found


def show(value: Any) -> str:
    """Return a default in words."""
    if dataclasses.is_dataclass(value):
        return str(value) if isinstance(value, Duration) else "the fields below"
    return value if isinstance(value, str) else repr(value)
