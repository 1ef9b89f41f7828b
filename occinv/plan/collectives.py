"""Find the collectives of a compiled program, and the bytes that each device sends for them."""

from __future__ import annotations

import dataclasses
import re
from math import prod

import numpy as np

from occinv.plan.hlo import Instruction, Program


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step.

    Attributes:
      bytes: The bytes of their operands on each device.
      sent: The bytes that each device sends to others of its slice or node.
      network: The bytes that each device sends to other nodes.
    """

    operation: str
    count: int
    bytes: int
    sent: int
    network: int = 0


def _sent(kind: str, devices: int, nodes: int) -> tuple[float, float]:
    """Return the bytes that a device sends within its node, and to other nodes.

    Both are for a byte of its operand, with ring algorithms. Between nodes, each device of a node
    sends an equal part of what the node has to send.
    """
    own = devices // nodes  # devices in a node
    if kind == "all-reduce":
        return 2 * (own - 1) / own, 2 * (nodes - 1) / nodes / own
    if kind == "reduce-scatter":
        return (own - 1) / own, (nodes - 1) / nodes / own
    if kind == "all-gather":
        return devices - nodes, nodes - 1
    if kind == "all-to-all":
        return (own - 1) / devices, (devices - own) / devices
    return (1, 0) if nodes == 1 else (0, 1)  # a permutation waits for the slowest pair


KINDS = "all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"


def find_collectives(
    program: Program, devices: int, per_node: int, per_chip: int = 1, only_waiting: bool = False
) -> list[Collective]:
    """Return the collectives of one step, summed by kind.

    Args:
      program: The compiled program.
      devices: The number of devices of the program.
      per_node: The number of devices of a node. Device i is in node `i // per_node`.
      per_chip: The number of devices of a chip. With several, only bytes that leave a chip count.
      only_waiting: Skip asynchronous collectives, which run beside other instructions.
    """
    found: dict[tuple[str, str], Collective] = {}
    executed = program.executed if only_waiting else program.executed + program.fused
    for name, times in executed.items():
        if only_waiting and name in program.beside:
            continue
        computation = program.computations.get(name, {})
        for one in computation.values():
            kind = one.opcode.removesuffix("-start")
            if kind not in KINDS or (only_waiting and kind != one.opcode):
                continue
            if "all-reduce-scatter" in name:  # a fusion whose result is one part of the sum
                kind = kind.replace("all-reduce", "reduce-scatter")
            size = sum(sum(computation[o].sizes) for o in one.operands if o in computation)
            members = _members(one, devices, per_node)
            nodes = {member // (per_node if per_chip == 1 else per_chip) for member in members}
            sent, network = _sent(kind, len(members), len(nodes))
            if per_chip > 1:
                sent, network = network, 0
            # A collective that runs beside several fusions is in each of them, on one channel.
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            key = kind, channel[1] if channel else name + one.name
            count = max(times, found[key].count if key in found else 0)
            found[key] = Collective(
                kind, count, count * size, round(count * sent * size), round(count * network * size)
            )
    totals: dict[str, Collective] = {}
    for (kind, _), part in sorted(found.items()):
        sums = totals.get(kind, Collective(kind, 0, 0, 0))
        totals[kind] = Collective(
            kind,
            sums.count + part.count,
            sums.bytes + part.bytes,
            sums.sent + part.sent,
            sums.network + part.network,
        )
    return list(totals.values())


def _members(collective: Instruction, devices: int, per_node: int) -> list[int]:
    """Return the devices in the first group of a collective: all `devices` if it has no groups.

    Of a permutation, it is a pair of devices, in different nodes if there is such a pair.
    """
    attributes = collective.attributes
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        found = [[int(x) for x in pair.split(",")] for pair in re.findall(r"\d+,\d+", pairs[1])]
        return max(found, key=lambda pair: len({one // per_node for one in pair}), default=[0])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        order = re.search(r"device_ids=\((.*?)\)(?:,|\s|$)", mesh[2])
        ids = _iota(order[1]) if order else np.arange(prod(sizes.values()))
        chosen = {}  # the size of an axis before and of the part of it that a group spans
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", mesh[3]):
            chosen[name] = int(before or 1), int(size or sizes[name])
        parts, first = [], []
        for name, size in sizes.items():
            before, inside = chosen.get(name, (1, 1))
            parts += [before, inside, size // before // inside]
            first += [0, slice(None) if name in chosen else 0, 0]
        return [int(member) for member in ids.reshape(parts)[tuple(first)].flat]
    if counts := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\S*?)(?:,? |,?$)", attributes):
        ids = _iota(counts[3]).reshape(int(counts[1]), int(counts[2]))
        return [int(member) for member in ids[0]]
    if members := re.search(r"replica_groups=\{\{([^}]*)\}", attributes):
        return [int(member) for member in members[1].split(",")]
    return list(range(devices))


def _iota(text: str) -> np.ndarray:
    """Return the device ids in the order that XLA writes as `[2,4]T(1,0)`: a transposed range."""
    sizes, _, axes = text.partition("T")
    shape = [int(size) for size in re.findall(r"\d+", sizes)]
    ids = np.arange(prod(shape)).reshape(shape)
    order = [int(axis) for axis in re.findall(r"\d+", axes)]
    return ids.transpose(order) if order else ids
