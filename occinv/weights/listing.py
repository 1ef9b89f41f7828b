"""What happened to every key of a file, in words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

NUMBERED = re.compile(r"(?<=blocks\.)\d+(?=\.)|(?<=encoderblock_)\d+(?=/)|(?<=layers\.)\d+(?=\.)")


@dataclasses.dataclass
class Listing:
    """Every key of a file: used, or ignored with a reason; and what the file had not.

    Attributes:
      missing: what was expected, and what was done instead.
      notes: `name: value (why)`, what was chosen.
    """

    used: list[str] = dataclasses.field(default_factory=list)
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(name)
        instead: dict[str, list[str]] = {}
        for name, done in self.missing.items():
            instead.setdefault(done, []).append(name)
        lines = [f"used ({len(self.used)} keys):", *_indented(grouped(self.used))]
        for title, groups in (("ignored", reasons), ("missing", instead)):
            lines += [f"{title}:" if groups else f"{title}: nothing"]
            for why, names in groups.items():
                lines += [f"  {why}:", *_indented(grouped(names), 4)]
        return "\n".join([*lines, *self.notes])


def _indented(lines: Iterable[str], by: int = 2) -> list[str]:
    return [" " * by + line for line in lines]


def grouped(names: Iterable[str]) -> list[str]:
    """`names` with those that differ in the number of a block only as one: blocks.0…11.norm1.bias.

    Numbers that are not consecutive are listed: 0…3,5.
    """
    groups: dict[str, list[int]] = {}
    for name in names:
        match = NUMBERED.search(name)
        numbers = groups.setdefault(NUMBERED.sub("{}", name, count=1), [])
        if match:
            numbers.append(int(match[0]))
    return [
        template.replace("{}", ranges(numbers), 1) if numbers else template
        for template, numbers in groups.items()
    ]


def ranges(numbers: Iterable[int]) -> str:
    """0…3,5 for 0, 1, 2, 3 and 5."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("…".join(map(str, part)) for part in parts)
