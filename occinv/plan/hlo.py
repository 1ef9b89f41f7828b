"""What a compiled program moves, read from its text: the instructions that the chip executes."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

# Bytes that leave each of n chips for an operand of one byte, along rings.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "async-start", "partition-id", "replica-id"),
    *("opt-barrier",),
}
SLICES = {"slice", "dynamic-slice", "gather"}
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


class Instruction(NamedTuple):
    """`name = shapes opcode(operands), attributes`."""

    name: str
    sizes: tuple[int, ...]  # bytes of the result, of each array if it is a tuple
    in_memory: tuple[bool, ...]  # whether it lies in the chip's memory (HBM), not in a faster one
    opcode: str
    operands: tuple[str, ...]
    text: str  # between the parentheses
    attributes: str
    is_root: bool

    @property
    def moved(self) -> int:
        """Bytes of the result that lie in memory."""
        return sum(s for s, is_in in zip(self.sizes, self.in_memory, strict=True) if is_in)

    def called(self, *names: str) -> list[str]:
        """The computations that the attributes of these names name."""
        found = re.findall(
            rf"\b(?:{'|'.join(names)})=\{{?(%[^\s}}]+(?:, %[^\s}}]+)*)", self.attributes
        )
        return [name.strip(", ") for names in found for name in re.findall(r"%[^\s,]+", names)]


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step."""

    operation: str
    count: int
    bytes: int  # of their operands on each chip
    sent: int  # bytes that leave each chip


class Program:
    """A compiled program, `text` as `Compiled.as_text()` gives it.

    A loop counts once for each of its turns: those that the compiler notes, or the number its
    counter is compared with, or one if there is neither.
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
            elif current and (found := _instruction(line)):
                self.computations[current][found.name] = found
        self.executed: Counter[str] = Counter()  # how often each computation runs
        self.fused: Counter[str] = Counter()  # the same of those that run inside an instruction
        self._execute(entry, 1)

    def _execute(self, name: str, times: int) -> None:
        self.executed[name] += times
        for one in self.computations.get(name, {}).values():
            if one.opcode == "while":
                for inner in one.called("body", "condition"):
                    self._execute(inner, times * self._turns(one))
            elif one.opcode in ("call", "async-start", "conditional"):
                branches = ("true_computation", "false_computation", "branch_computations")
                for inner in one.called("to_apply", "calls", *branches):
                    self._execute(inner, times)
            elif one.opcode == "fusion":
                for inner in one.called("calls"):
                    self.fused[inner] += times

    def _turns(self, loop: Instruction) -> int:
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
        """What the chips tell each other in one step, in groups or all `devices` of them."""
        found: dict[tuple[str, str], tuple[int, int, int]] = {}
        for name, times in (self.executed + self.fused).items():
            computation = self.computations.get(name, {})
            for one in computation.values():
                kind = one.opcode.removesuffix("-start")
                if "all-reduce-scatter" in name:  # a fusion in which each keeps its part alone
                    kind = kind.replace("all-reduce", "reduce-scatter")
                if kind in SENT:
                    size = sum(sum(computation[o].sizes) for o in one.operands if o in computation)
                    # One that goes on while fusions run stands in each of them, on one channel.
                    channel = re.search(r"channel_id=(\d+)", one.attributes)
                    key = kind, channel[1] if channel else name + one.name
                    times_before, *_ = found.get(key, (0,))
                    found[key] = max(times, times_before), size, _group(one, devices)
        total: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0, 0])
        for (kind, _), (times, size, group) in found.items():
            for place, value in enumerate((1, size, SENT[kind](group) * size)):
                total[kind][place] += times * value
        return [
            Collective(kind, int(count), int(size), round(sent))
            for kind, (count, size, sent) in sorted(total.items())
        ]

    def traffic(self) -> int:
        """Bytes that a chip reads from its memory and writes to it in one step.

        Of an array that is only sliced, or updated in place, the slice counts.
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
        results = list(zip(one.sizes, one.in_memory, strict=True))
        if opcode != one.opcode:  # (operands, results, …), or a copy's (to, from, …)
            count = len(operands)
            results = (results[:1] if opcode == "copy" else results[count : 2 * count]) or results
        written = sum(size for size, is_in in results if is_in)
        if opcode in SLICES:
            return written + (results[0][0] if operands[0].in_memory[0] else 0)
        if opcode in ("dynamic-update-slice", "scatter"):
            part = operands[2 if opcode == "scatter" else 1]
            return part.moved + (sum(part.sizes) if results[0][1] else 0)
        if opcode == "fusion":
            (inner,) = one.called("calls")
            read = sum(min(o.moved, self._read(inner, number)) for number, o in enumerate(operands))
            return read + sum(
                size
                for size, is_in in zip(self._written(inner, one), one.in_memory, strict=True)
                if is_in
            )
        return written + sum(o.moved for o in operands)

    def _read(self, fused: str, number: int) -> int:
        """Bytes that a fused computation reads of its parameter `number`."""
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
        """Bytes that a fused computation writes of each of its results."""
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


def _group(collective: Instruction, devices: int) -> int:
    """How many devices take part in each of the groups of a collective, `devices` in all."""
    said = collective.attributes
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", said):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
    if counts := re.search(r"replica_groups=\[\d+,(\d+)\]", said):
        return int(counts[1])
    if members := re.search(r"replica_groups=\{\{([^}]*)\}", said):
        return len(members[1].split(","))
    return devices


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?(%\S+) = ", line)
    if not head:
        return None
    start = head.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    shapes = SHAPE.findall(line[start:end])
    opcode, _, _ = line[end:].strip().partition("(")
    first = line.index("(", end)
    last = _closing(line, first)
    text = line[first + 1 : last - 1]
    return Instruction(
        name=head[2],
        sizes=tuple(_size(*shape) for shape in shapes),
        in_memory=tuple(not re.search(r"S\([1-9]", layout) for *_, layout in shapes),
        opcode=opcode,
        operands=tuple(re.findall(r"%[^\s,()]+", text)),
        text=text,
        attributes=line[last:],
        is_root=bool(head[1]),
    )


def _size(kind: str, sizes: str, layout: str) -> int:
    """Bytes of an array such as `f32`, `4,64`, `1,0:T(8,128)`, padded to tiles on its last axes."""
    digits = re.search(r"\d+", kind)
    bits = int(digits[0]) if digits else 8 * (kind == "pred")
    axes = [int(size) for size in sizes.split(",") if size]
    order, _, rest = layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", rest)
    if tile:
        axes = [axes[int(axis)] for axis in reversed(order.split(",")) if axis]
        tiles = [int(size) for size in tile[1].split(",")]
        axes = [1] * (len(tiles) - len(axes)) + axes
        first = len(axes) - len(tiles)
        padded = [-(-size // t) * t for size, t in zip(axes[first:], tiles, strict=True)]
        axes = axes[:first] + padded
    return bits * prod(axes) // 8


def _closing(line: str, start: int) -> int:
    """Behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[place], 0)
        if not depth:
            return place + 1
    return len(line)
