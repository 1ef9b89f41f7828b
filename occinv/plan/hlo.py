"""Count the bytes that a compiled program moves, from the text of its HLO instructions."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

# Bytes that each of n chips sends per byte of its operand, with ring algorithms.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
# Instructions that move no bytes themselves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "async-start", "partition-id", "replica-id"),
    *("opt-barrier",),
}
SLICES = {"slice", "dynamic-slice", "gather"}
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


class Instruction(NamedTuple):
    """An instruction `name = shapes opcode(operands), attributes`.

    Attributes:
      sizes: The bytes of each array of the result.
      in_hbm: Whether each array of the result is in HBM, not in a faster memory of the chip.
      operands: The names of the instructions whose results it reads.
      text: The operands as written.
      attributes: The attributes as written.
      is_root: Whether its result is the result of the computation.
    """

    name: str
    sizes: tuple[int, ...]
    in_hbm: tuple[bool, ...]
    opcode: str
    operands: tuple[str, ...]
    text: str
    attributes: str
    is_root: bool

    @property
    def hbm_bytes(self) -> int:
        """The bytes of the result in HBM."""
        return sum(s for s, is_in in zip(self.sizes, self.in_hbm, strict=True) if is_in)

    def called(self, *attributes: str) -> list[str]:
        """Return the computations in these attributes, the first one of each list."""
        return re.findall(rf"\b(?:{'|'.join(attributes)})=\{{?(%[^\s,}}]+)", self.attributes)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step.

    Attributes:
      bytes: The bytes of their operands on each chip.
      sent: The bytes that each chip sends.
    """

    operation: str
    count: int
    bytes: int
    sent: int


class Program:
    """A compiled program, parsed from `Compiled.as_text()`.

    A loop counts once per iteration. Their number is the compiler's `known_trip_count`, else the
    constant in the loop's condition, else 1. A conditional counts as its first branch.

    Attributes:
      computations: The instructions of each computation, by name.
      executed: The number of times that each computation runs.
      fused: The number of times that each computation runs as the body of a fusion.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        entry, current = "", ""
        for line in text.splitlines():
            if line and not line[0].isspace():
                head = re.match(r"(ENTRY )?(%\S+) \(", line)
                current = head[2] if head and line.endswith("{") else ""
                if head and current:
                    self.computations[current] = {}
                    entry = current if head[1] else entry
            elif current and (instruction := _parse(line)):
                self.computations[current][instruction.name] = instruction
        self.executed: Counter[str] = Counter()
        self.fused: Counter[str] = Counter()
        self._execute(entry, 1)

    def _execute(self, name: str, times: int) -> None:
        self.executed[name] += times
        for one in self.computations.get(name, {}).values():
            if one.opcode == "while":
                for inner in one.called("body", "condition"):
                    self._execute(inner, times * self._iterations(one))
            elif one.opcode in ("call", "async-start", "conditional"):
                first_branch = "true_computation", "branch_computations"
                for inner in one.called("to_apply", "calls", *first_branch):
                    self._execute(inner, times)
            elif one.opcode == "fusion":
                for inner in one.called("calls"):
                    self.fused[inner] += times

    def _iterations(self, loop: Instruction) -> int:
        noted = re.search(r"known_trip_count\W+n\W+(\d+)", loop.attributes)
        if noted:
            return int(noted[1])
        (condition,) = loop.called("condition")
        limits = [
            int(one.text)
            for one in self.computations.get(condition, {}).values()
            if one.opcode == "constant" and one.text.isdigit()
        ]
        return max(limits, default=1)

    def collectives(self, devices: int) -> list[Collective]:
        """Return the collectives of one step, summed by kind.

        Args:
          devices: The size of a group, if the program does not give it.
        """
        found: dict[tuple[str, str], tuple[int, int, int]] = {}  # count, bytes, size of a group
        for name, times in (self.executed + self.fused).items():
            computation = self.computations.get(name, {})
            for one in computation.values():
                kind = one.opcode.removesuffix("-start")
                if "all-reduce-scatter" in name:  # a fusion whose result is one part of the sum
                    kind = kind.replace("all-reduce", "reduce-scatter")
                if kind not in SENT:
                    continue
                size = sum(sum(computation[o].sizes) for o in one.operands if o in computation)
                # A collective that runs beside several fusions is in each of them, on one channel.
                channel = re.search(r"channel_id=(\d+)", one.attributes)
                key = kind, channel[1] if channel else name + one.name
                count = max(times, found[key][0] if key in found else 0)
                found[key] = count, size, _group_size(one, devices)
        kinds = sorted({kind for kind, _ in found})
        return [_total(kind, [f for key, f in found.items() if key[0] == kind]) for kind in kinds]

    def traffic(self) -> int:
        """Return the bytes that a chip reads from HBM and writes to HBM in one step.

        If an instruction reads or writes only a slice of an array, only the slice counts.
        """
        return sum(
            times * sum(self._moved(one, self.computations[name]) for one in computation.values())
            for name, times in self.executed.items()
            if (computation := self.computations.get(name))
        )

    def _moved(self, one: Instruction, around: dict[str, Instruction]) -> int:
        if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
            return 0
        if one.opcode == "custom-call" and "AllocateBuffer" in one.attributes:
            return 0
        operands = [around[o] for o in one.operands if o in around]
        opcode = one.opcode.removesuffix("-start")
        results = list(zip(one.sizes, one.in_hbm, strict=True))
        if opcode != one.opcode:  # the result is (operands, results, …), of a copy (to, from, …)
            count = len(operands)
            results = (results[:1] if opcode == "copy" else results[count : 2 * count]) or results
        written = sum(size for size, is_in in results if is_in)
        if opcode in SLICES:
            return written + (results[0][0] if operands[0].in_hbm[0] else 0)
        if opcode in ("dynamic-update-slice", "scatter"):
            part = operands[2 if opcode == "scatter" else 1]
            return part.hbm_bytes + (sum(part.sizes) if results[0][1] else 0)
        if opcode == "fusion":
            (inner,) = one.called("calls")
            read = sum(min(o.hbm_bytes, self._read(inner, i)) for i, o in enumerate(operands))
            written_in = zip(self._written(inner, one), one.in_hbm, strict=True)
            return read + sum(size for size, is_in in written_in if is_in)
        return written + sum(o.hbm_bytes for o in operands)

    def _read(self, fused: str, number: int) -> int:
        """Return the bytes that a fused computation reads of its parameter `number`."""
        inside = self.computations.get(fused, {})
        names = [
            one.name
            for one in inside.values()
            if one.opcode == "parameter" and one.text == str(number)
        ]
        total = 0
        while names:
            name = names.pop()
            for one in inside.values():
                places = [place for place, operand in enumerate(one.operands) if operand == name]
                if not places:
                    continue
                if one.opcode == "bitcast":
                    names.append(one.name)
                elif one.opcode in SLICES and places == [0]:
                    total += sum(one.sizes)
                elif one.opcode == "fusion":
                    (deeper,) = one.called("calls")
                    total += sum(self._read(deeper, place) for place in places)
                elif one.opcode != "dynamic-update-slice" or places != [0]:
                    return sum(inside[name].sizes)
        return total

    def _written(self, fused: str, fusion: Instruction) -> Iterator[int]:
        """Yield the bytes that a fused computation writes of each of its results."""
        inside = self.computations.get(fused, {})
        root = next((one for one in inside.values() if one.is_root), None)
        parts = [root.name] if root else []
        if root and root.opcode == "tuple":
            parts = list(root.operands)
        for number, size in enumerate(fusion.sizes):
            one = inside.get(parts[number]) if number < len(parts) else None
            while one is not None and one.opcode == "bitcast":
                one = inside.get(one.operands[0])
            if one is not None and one.opcode == "dynamic-update-slice":
                size = sum(inside[one.operands[1]].sizes)
            yield size


def _total(kind: str, found: list[tuple[int, int, int]]) -> Collective:
    return Collective(
        kind,
        count=sum(count for count, _, _ in found),
        bytes=sum(count * size for count, size, _ in found),
        sent=round(sum(count * (SENT[kind](group) * size) for count, size, group in found)),
    )


def _group_size(collective: Instruction, devices: int) -> int:
    """Return the number of devices in a group of a collective, `devices` if it has no groups."""
    attributes = collective.attributes
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
    if counts := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(counts[1])
    if members := re.search(r"replica_groups=\{\{([^}]*)\}", attributes):
        return len(members[1].split(","))
    return devices


def _parse(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?(%\S+) = ", line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    shapes = SHAPE.findall(line[start:end])
    first = line.index("(", end)
    last = _closing(line, first)
    text = line[first + 1 : last - 1]
    return Instruction(
        name=head[2],
        sizes=tuple(_bytes(*shape) for shape in shapes),
        in_hbm=tuple(not re.search(r"S\([1-9]", layout) for *_, layout in shapes),
        opcode=line[end:first].strip(),
        operands=tuple(re.findall(r"%[^\s,()]+", text)),
        text=text,
        attributes=line[last:],
        is_root=bool(head[1]),
    )


def _bytes(kind: str, sizes: str, layout: str) -> int:
    """Return the bytes of an array, whose last axes are padded to whole tiles.

    Args:
      kind: The dtype, such as `f32`.
      sizes: The shape, such as `4,64`.
      layout: The order of the axes and the tiles, such as `1,0:T(8,128)`.
    """
    digits = re.search(r"\d+", kind)
    bits = int(digits[0]) if digits else 8 * (kind == "pred")
    axes = [int(size) for size in sizes.split(",") if size]
    order, _, rest = layout.partition(":")
    if tile := re.match(r"T\(([\d,]+)\)", rest):
        axes = [axes[int(axis)] for axis in reversed(order.split(",")) if axis]
        tiles = [int(size) for size in tile[1].split(",")]
        axes = [1] * (len(tiles) - len(axes)) + axes
        first = len(axes) - len(tiles)
        axes[first:] = [-(-size // t) * t for size, t in zip(axes[first:], tiles, strict=True)]
    return bits * prod(axes) // 8


def _closing(line: str, start: int) -> int:
    """Return the index after the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if not depth:
            return place + 1
    return len(line)
