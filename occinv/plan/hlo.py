"""Count the bytes that a compiled program moves, from the text of its HLO instructions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

# Instructions that move no bytes themselves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "call-start", "async-start"),
    *("partition-id", "replica-id", "opt-barrier"),
}
SLICES = {"slice", "dynamic-slice", "gather"}
# Instructions that write a part of their first operand in place, and the operand that is the part.
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
# Libraries of a GPU, whose last result is memory for intermediate values, most of it unused.
WORKSPACE = re.compile(r'custom_call_target="__cu(blas|dnn)')
KERNEL = 'custom_call_target="tpu_custom_call"'
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")


class Instruction(NamedTuple):
    """An instruction `name = shapes opcode(operands), attributes`.

    Attributes:
      sizes: The bytes of each array of the result.
      in_hbm: Whether each array of the result is in HBM, not in a faster memory of the device.
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


class Program:
    """A compiled program, parsed from `Compiled.as_text()`.

    A loop counts once per iteration. Their number is the compiler's `known_trip_count`, else the
    constant in the loop's condition, else 1. A conditional counts as its first branch.

    Attributes:
      computations: The instructions of each computation, by name.
      executed: The number of times that each computation runs.
      beside: The executed computations that run asynchronously, beside the caller.
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
        self.beside: set[str] = set()
        self._execute(entry, 1, is_beside=False)

    def _execute(self, name: str, times: int, is_beside: bool) -> None:
        self.executed[name] += times
        self.beside |= {name} if is_beside else set()
        for one in self.computations.get(name, {}).values():
            if one.opcode == "while":
                for inner in one.called("body", "condition"):
                    self._execute(inner, times * self._iterations(one), is_beside)
            elif one.opcode in ("call", "call-start", "async-start", "conditional"):
                first_branch = "true_computation", "branch_computations"
                for inner in one.called("to_apply", "calls", *first_branch):
                    self._execute(inner, times, is_beside or one.opcode.endswith("-start"))
            elif one.opcode in ("fusion", "fusion-start"):
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

    def traffic(self) -> int:
        """Return the bytes that a device reads from HBM and writes to HBM in one step.

        If an instruction reads or writes only a slice of an array, only the slice counts.
        """
        return sum(
            times * sum(self.moved(one, self.computations[name]) for one in computation.values())
            for name, times in self.executed.items()
            if (computation := self.computations.get(name))
        )

    def moved(self, one: Instruction, around: dict[str, Instruction]) -> int:
        """Return the bytes that an instruction of a computation reads and writes."""
        if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
            return 0
        if one.opcode == "custom-call" and "AllocateBuffer" in one.attributes:
            return 0
        names = one.operands
        if KERNEL in one.attributes:  # given q, k and v as one array, it reads each part once
            names = tuple(dict.fromkeys(names))
        operands = [around[o] for o in names if o in around]
        opcode = one.opcode.removesuffix("-start")
        results = list(zip(one.sizes, one.in_hbm, strict=True))
        if opcode != one.opcode:  # the result is (operands, results, …), of a copy (to, from, …)
            count = sum(len(o.sizes) for o in operands)
            results = (results[:1] if opcode == "copy" else results[count:]) or results
        if opcode == "custom-call" and len(results) > 1 and WORKSPACE.search(one.attributes):
            results.pop()
        if opcode in SLICES:
            slice_, is_in = results[0]
            return slice_ * (is_in + operands[0].in_hbm[0])
        if opcode in UPDATES:
            part = operands[UPDATES[opcode]]
            return part.hbm_bytes + (sum(part.sizes) if results[0][1] else 0)
        if opcode == "fusion":
            (inner,) = one.called("calls")
            read = sum(min(o.hbm_bytes, self._read(inner, i)) for i, o in enumerate(operands))
            # The result of an asynchronous fusion ends with a context that no part of it writes.
            parts = zip(self._written(inner, results), results, strict=False)
            return read + sum(size for size, (_, is_in) in parts if is_in)
        written = sum(size for size, is_in in results if is_in)
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
                elif one.opcode not in UPDATES or places != [0]:
                    return sum(inside[name].sizes)
        return total

    def _written(self, fused: str, results: list[tuple[int, bool]]) -> Iterator[int]:
        """Yield the bytes that a fused computation writes of each of its results."""
        inside = self.computations.get(fused, {})
        root = next((one for one in inside.values() if one.is_root), None)
        parts = [root.name] if root else []
        if root and root.opcode == "tuple":
            parts = list(root.operands)
        for number, (size, _) in enumerate(results[: len(parts)]):
            one = inside.get(parts[number])
            while one is not None and one.opcode == "bitcast":
                one = inside.get(one.operands[0])
            if one is not None and one.opcode in UPDATES:
                size = sum(inside[one.operands[UPDATES[one.opcode]]].sizes)
            elif one is not None and one.opcode == "get-tuple-element":
                call = inside[one.operands[0]]
                last = f"index={len(call.sizes) - 1}"
                is_workspace = WORKSPACE.search(call.attributes) and last in one.attributes
                size = 0 if is_workspace else size
            yield size


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
