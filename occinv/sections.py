"""Sections of a config: build a dataclass from a mapping, check types and ranges, report mistakes.

The annotation of each field of a dataclass is its type and range. Objectives, evaluators and
tokenizers are such dataclasses, too, so that every mistake in a config has the same kind of error.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

T = TypeVar("T")

# Numbers are at most what their dtypes hold, never nan or infinite, and if positive, not 0 there.
INT32, INT53, FLOAT32, TINY32 = LIMITS = 2**31, 2**53, 3e38, 1e-37  # not printed
SIGNS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}

BOUNDS = {
    "greater_than": ">",
    "greater_than_equal": ">=",
    "less_than": "<",
    "less_than_equal": "<=",
}


class UserError(Exception):
    """A mistake in the user's input. The command line prints it as one line and exits with 2."""


class UnknownField(UserError):
    """A field that a section of a config does not have.

    Attributes:
      path: Its position in the config.
      config: The whole config; empty if only a section of it is known.
    """

    def __init__(self, path: str, hint: str) -> None:
        super().__init__(f"unknown field {path!r}{hint}")
        self.path = path
        self.config: Mapping[str, Any] = {}


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the choice nearest to `word`.

    If none is near, list every choice, or nothing if there are more than 50.
    """
    choices = sorted(choices)
    if near := difflib.get_close_matches(word, choices, n=1, cutoff=0.5):
        return f" (did you mean {near[0]!r}?)"
    return f" (expected one of: {', '.join(choices)})" if len(choices) <= 50 else ""


def find_class(registry: Mapping[str, str], name: str, base: type, kind: str) -> Any:
    """Return the class that a name of `registry`, or `module:Class`, stands for.

    Args:
      registry: `module:Class` by name.
      name: The name.
      base: The class that it must be derived from.
      kind: The text before the name in messages, such as `objective.name=`.

    Raises:
      UserError: The name is unknown, or cannot be imported, or is another kind of class.
    """
    shown = f"{kind}{name!r}"
    where = registry.get(name, name)
    if ":" not in where:
        raise UserError(f"unknown {shown}{nearest(name, registry)}; use module:Class for your own")
    module, _, attribute = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of one's own may raise anything
        raise UserError(f"{shown} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{shown} is not a subclass of {base.__name__}")
    return found


@functools.cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def from_mapping(cls: type[T], section: Any, path: str, **given: Any) -> T:
    """Build the dataclass `cls` from the mapping `section` found at `path` of a config.

    Args:
      cls: A dataclass; the annotation of each field is its type and range. Its attribute
        `EXPECTED`, if any, says in errors what a section of it is. Its method
        `check_section(path)`, if any, checks its fields together. The metadata `example` of a field
        is shown in errors if it has no default to show.
      section: A mapping from field names to values; values may be sections themselves.
      path: The position in the config, for messages.
      **given: Fields that the program sets and a config may not name.

    Raises:
      UserError: An unknown or missing field, or a value of the wrong type or out of range.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"{path or 'the config'}={section!r}, expected {_section_text(cls, path)}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in given}  # type: ignore[arg-type]
    every = _type_hints(cls)  # type: ignore[arg-type]
    hints = {name: every[name] for name in fields}
    dot = f"{path}." if path else ""
    for name in map(str, section):
        if name not in fields:
            below = _paths_below(hints, name)
            hint = f" (did you mean {dot + below[0]!r}?)" if below else nearest(name, fields)
            raise UnknownField(dot + name, hint)
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in section:
            raise UserError(f"{dot}{name} is missing")
    values = {
        name: _value(hints[name], value, dot + name, fields[name])
        for name, value in section.items()
    }
    built = cls(**values, **given)
    if hasattr(built, "check_section"):
        built.check_section(path)
    return built


def _paths_below(hints: Mapping[str, Any], name: str) -> list[str]:
    """Return the paths of the fields called `name` in the sections one level below."""
    sections = {field: dataclass_in(hint) for field, hint in hints.items()}
    return [
        f"{field}.{name}"
        for field, section in sections.items()
        if section is not None and name in {f.name for f in dataclasses.fields(section)}
    ]


def dataclass_in(hint: Any) -> Any:
    """Return the dataclass in a type such as `Duration | None`, or None."""
    choices = (hint, *typing.get_args(hint))
    found = (t for t in choices if isinstance(t, type) and dataclasses.is_dataclass(t))
    return next(found, None)


def _section_text(hint: Any, path: str) -> str:
    """Return what a section is, for errors, with its first field that has an example."""
    cls = dataclass_in(hint)
    if hasattr(cls, "EXPECTED"):
        return cls.EXPECTED.format(path=path)
    examples = {field.name: _example(field) for field in dataclasses.fields(cls)}
    name = next(name for name in examples if examples[name])
    text = f"a {type_text(hint)}, such as {{{name!r}: {examples[name]}}}"
    return text + ("" if hint is cls else ", or {} for its defaults")


def _example(field: dataclasses.Field[Any]) -> str:
    """Return a value of a field as text; empty if it has neither an example nor a default."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default in (None, dataclasses.MISSING, (), {}) or dataclasses.is_dataclass(default):
        return field.metadata.get("example", "")
    return repr(default)


def _value(hint: Any, value: Any, path: str, field: dataclasses.Field[Any]) -> Any:
    """Check `value` against the type `hint` of a field, and build a section."""
    choices = (hint, *typing.get_args(hint))
    section = dataclass_in(hint)
    if section is not None and not (value is None and type(None) in choices):
        if not isinstance(value, Mapping):
            raise UserError(f"{path}={value!r}, expected {_section_text(hint, path)}")
        return from_mapping(section, value, path)
    import pydantic  # here, so that `occinv --help` stays fast

    try:
        return _adapter(hint).validate_python(plain(value))
    except pydantic.ValidationError as error:
        # Of alternatives such as int | tuple[int, int], take the error inside of the tuple.
        first = max(error.errors(), key=lambda e: sum(isinstance(place, int) for place in e["loc"]))
        kind, given = first["type"], first["input"]
        for key in first["loc"] if kind != "missing" else ():
            if isinstance(key, int):
                path += f"[{key}]"
            elif isinstance(value, Mapping) and key in value:
                path, field = f"{path}.{key}", dataclasses.field()
        if kind in BOUNDS:
            (limit,) = first["ctx"].values()
            shown = f"{limit:g}" if isinstance(limit, float) else str(limit)
            above = "> 0, at least" if limit == TINY32 else BOUNDS[kind]
            expected = f"a number {above} {shown}"
        elif kind == "finite_number":
            expected = "a finite number"
        elif kind == "literal_error":
            expected = first["msg"].removeprefix("Input should be ")
            expected += nearest(str(given), map(str, typing.get_args(_literal(hint))))
        else:
            expected, example = type_text(hint), _example(field)
            expected = f"a {expected}" if expected == "section" else expected
            expected += example and f", such as {example}"
        raise UserError(f"{path}={given!r}, expected {expected}") from error


def _literal(hint: Any) -> Any:
    """Return the `Literal` in a type such as `Literal[...] | None`."""
    choices = (hint, *typing.get_args(hint))
    return next(t for t in choices if typing.get_origin(t) is Literal)


def type_text(hint: Any) -> str:
    """Return a type and its range in words, such as `int >= 1 or None`."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        kind, *limits = choices
        pairs = [(SIGNS[type(x)][0], getattr(x, SIGNS[type(x)][1])) for x in limits]
        bounds = [f"{sign} {value}" for sign, value in pairs if value not in LIMITS]
        return f"{type_text(kind)} {' and '.join(bounds)}"
    if origin is Literal:
        return " or ".join(map(str, choices))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(type_text, choices))
    if origin is tuple:
        shown = ["..." if choice is ... else type_text(choice) for choice in choices]
        return f"({', '.join(shown)})"
    if hint is type(None):
        return "None"
    if hasattr(hint, "EXPECTED"):
        return hint.__name__.lower()
    is_section = issubclass(origin or hint, Mapping) or dataclasses.is_dataclass(hint)
    return "section" if is_section else hint.__name__


@functools.cache
def _adapter(hint: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True, allow_inf_nan=False))


def plain(config: Any) -> Any:
    """Return a ConfigDict as plain dicts and tuples, recursively."""
    if isinstance(config, Mapping) or hasattr(config, "to_dict"):
        return {k: plain(v) for k, v in config.items()}
    return tuple(map(plain, config)) if isinstance(config, list | tuple) else config
