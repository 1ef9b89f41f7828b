"""Estimate the time of a step from the numbers that a TPU's compiler writes into its program."""

from __future__ import annotations

import dataclasses
import re

from occinv.plan.chips import Chip
from occinv.plan.collectives import find_collectives
from occinv.plan.hlo import KERNEL, Program

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated seconds of a step. It is not a bound, and not a measurement.

    What runs asynchronously, such as copies and most collectives, takes no time.

    Attributes:
      instructions: The cycles that the compiler expects of each instruction.
      kernels: Pallas kernels, for which the compiler has no estimate, at their roofline.
      collectives: Those that nothing runs beside, at the peak of the links.
    """

    instructions: float
    kernels: float
    collectives: float

    @property
    def step(self) -> float:
        """The estimated seconds of a step."""
        return self.instructions + self.kernels + self.collectives


def estimate_step(
    program: Program, chip: Chip, devices: int, kernel_flops: float
) -> Estimate | None:
    """Return the estimate, or None if the compiler wrote no cycles: on GPUs and CPUs.

    Args:
      program: The compiled program.
      chip: The TPU.
      devices: The number of devices of the program.
      kernel_flops: The FLOPs of Pallas kernels on each device.
    """
    cycles, moved = 0, 0
    for name, times in program.executed.items():
        if name in program.beside:
            continue
        computation = program.computations.get(name, {})
        for one in computation.values():
            if found := CYCLES.search(one.attributes):
                cycles += times * int(found[1])
            elif one.opcode == "custom-call" and KERNEL in one.attributes:
                moved += times * program.moved(one, computation)
    if not cycles or not chip.clock:
        return None
    waiting = find_collectives(program, devices, devices, chip.devices, only_waiting=True)
    return Estimate(
        instructions=cycles / chip.clock,
        kernels=max(kernel_flops / chip.flops, moved / chip.memory_bandwidth),
        collectives=sum(one.sent for one in waiting) / chip.link_bandwidth,
    )
