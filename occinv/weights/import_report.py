"""The result of an import: a run, and a report of what happened to every key of the file."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from occinv.schema import Experiment

IMAGES = "tfds:imagenet2012"  # nearly every published checkpoint was trained on it
NUMBERED = re.compile(
    r"(?<=blocks\.)\d+(?=\.)|(?<=encoderblock_)\d+(?=/)|(?:(?<=layer\.)|(?<=layers\.))\d+(?=\.)"
)


class ImportedRun(NamedTuple):
    """The contents of the workdir that an import writes.

    Attributes:
      params: Parameters by component, as NumPy arrays.
      classes: Names of the classes of a classifier.
    """

    experiment: Experiment
    params: dict[str, Any]
    classes: tuple[str, ...] = ()


@dataclasses.dataclass
class ImportReport:
    """The used, ignored and missing keys of a file. `str` formats it for the command line.

    Attributes:
      used: Keys whose arrays were imported.
      ignored: Key -> why it was not imported.
      missing: Expected name -> what replaces it.
      notes: Values that were chosen, each as `name: value (why)`.
    """

    used: list[str] = dataclasses.field(default_factory=list)
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"used ({len(self.used)} keys):", *(f"  {name}" for name in grouped(self.used))]
        for title, entries in (("ignored", self.ignored), ("missing", self.missing)):
            lines.append(f"{title}:" if entries else f"{title}: nothing")
            for reason in dict.fromkeys(entries.values()):
                names = grouped(name for name, why in entries.items() if why == reason)
                lines += [f"  {reason}:", *(f"    {name}" for name in names)]
        return "\n".join([*lines, *self.notes])


def grouped(names: Iterable[str]) -> list[str]:
    """Join names that differ in the index of a block only: `blocks.0…3,5.norm1.bias`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        match = NUMBERED.search(name)
        indices = groups.setdefault(NUMBERED.sub("{}", name, count=1), [])
        if match:
            indices.append(int(match[0]))
    return [
        template.replace("{}", _ranges(indices), 1) if indices else template
        for template, indices in groups.items()
    ]


def _ranges(indices: Iterable[int]) -> str:
    """Format 0, 1, 2, 3 and 5 as `0…3,5`."""
    parts = []
    numbered = enumerate(sorted(set(indices)))
    for _, run in itertools.groupby(numbered, lambda item: item[1] - item[0]):
        first, *rest = [index for _, index in run]
        parts.append(f"{first}…{rest[-1]}" if rest else f"{first}")
    return ",".join(parts)
