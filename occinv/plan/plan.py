"""Plan a run on a slice: memory, arithmetic, traffic and time, from its compiled train step."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax

from occinv import parallel
from occinv.plan.chips import CHIPS, Chip, Slice, parse
from occinv.plan.hlo import Collective, Program
from occinv.schema import Experiment, Train, UserError
from occinv.train.flops import model_flops, traced_flops
from occinv.train.step import Assembly, assemble, init_state, trace_step

log = logging.getLogger("occinv.plan")

ASSUMED = 0.4  # share of the peak FLOP/s that a run reaches: an assumption, not a measurement


@dataclasses.dataclass(frozen=True)
class Memory:
    """The peak memory of a chip during a step, in bytes.

    Attributes:
      arguments: The train state and the chip's part of the batch.
      temporaries: Activations and gradients.
      outputs: Those that do not replace an argument.
      program: The code. Neither `total` nor the compiler's check of the memory includes it.
    """

    arguments: int
    temporaries: int
    outputs: int
    program: int

    @property
    def total(self) -> int:
        """The bytes that must fit."""
        return self.arguments + self.temporaries + self.outputs


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The minimum seconds of a step for each resource. All resources work at the same time."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """The minimum seconds of a step."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Pace:
    """The speed and the cost of a run, of its steps only.

    Compiling, evaluating, saving and waiting for data are not included.

    Attributes:
      utilization: The share of the peak FLOP/s that the model's matrix products use.
    """

    step_seconds: float
    utilization: float
    images_per_second: float
    hours: float
    chip_hours: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """The needs of a run. Bytes, FLOPs and seconds are those of one chip in one step.

    Attributes:
      flops_per_image: The FLOPs of matrix products, forward and backward, without recomputation.
      state: The bytes of the whole train state.
      needed: The bytes of memory that the compiler asks for.
      available: The bytes of memory that the compiler has, or those of the chip.
      memory: None if the step does not fit. Then the fields after it, but `advice`, are not set.
      traffic: The bytes read from HBM and written to HBM.
      advice: How to make a step that does not fit smaller.
    """

    topology: str
    objective: str
    chips: int
    batch_size: int
    accumulate: int
    fsdp: int
    remat: bool
    dtype: str
    steps: int
    parameters: int
    flops_per_image: int
    state: int
    needed: int
    available: int
    memory: Memory | None = None
    traffic: int = 0
    collectives: tuple[Collective, ...] = ()
    roofline: Roofline | None = None
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a chip."""
        return self.memory is not None

    @property
    def chip(self) -> Chip:
        """The chip of the slice."""
        return parse(self.topology)[0]

    @property
    def paces(self) -> dict[str, Pace]:
        """The pace at the `roofline` (if the step fits), and an `assumed` pace.

        The assumed pace uses ASSUMED of the peak FLOP/s, or less if the roofline allows less.
        """
        compute = self.flops_per_image * self.batch_size / self.chips / self.chip.flops
        seconds = {"assumed": compute / ASSUMED}
        if self.roofline:
            assumed = max(compute / ASSUMED, self.roofline.step)
            seconds = {"roofline": self.roofline.step, "assumed": assumed}
        return {
            name: Pace(
                step_seconds=step,
                utilization=compute / step,
                images_per_second=self.batch_size / step,
                hours=step * self.steps / 3600,
                chip_hours=step * self.steps * self.chips / 3600,
            )
            for name, step in seconds.items()
        }

    def as_json(self) -> dict[str, Any]:
        """Return the fields and properties as types of JSON."""
        paces = {name: dataclasses.asdict(pace) for name, pace in self.paces.items()}
        content = dataclasses.asdict(self) | {"fits": self.fits, "durations": paces}
        if self.memory and self.roofline:
            content["memory"]["total"] = self.memory.total
            content["roofline"] |= {"step": self.roofline.step, "bound": self.roofline.bound}
        return content


def make_plan(experiment: Experiment, tpu: Slice, num_classes: int, num_images: int) -> Plan:
    """Compile the train step of `occinv train` for a slice, and read what it needs.

    It opens no data and does not read the run that `init_from` names.

    Args:
      experiment: The config.
      tpu: The slice.
      num_classes: The number of classes of the data.
      num_images: The number of images in an epoch.

    Raises:
      UserError: The config is not valid on this slice.
    """
    mesh = parallel.make_mesh(tpu.devices, experiment.train.fsdp)
    run = assemble(experiment, mesh, num_classes, num_images)
    state = jax.eval_shape(lambda: init_state(run.objective, run.optimizer, experiment.seed))
    traced = trace_step(run, state)
    train = experiment.train
    plan = Plan(
        topology=tpu.topology,
        objective=experiment.objective["name"],
        chips=mesh.size,
        batch_size=train.batch_size,
        accumulate=train.accumulate,
        fsdp=train.fsdp,
        remat=train.remat,
        dtype=str(run.objective.setting.dtype),
        steps=run.steps,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        flops_per_image=round(model_flops(run, state)),
        state=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        needed=0,
        available=tpu.chip.memory,
    )
    log.info("compiling the step of %d images on %d chips", train.batch_size, mesh.size)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = exhausted(str(error))
        plan = dataclasses.replace(plan, needed=needed, available=available)
        return dataclasses.replace(plan, advice=tuple(_advice(run, plan)))
    memory = _memory(compiled.memory_analysis())
    program = Program(compiled.as_text())
    traffic, collectives = program.traffic(), program.collectives(mesh.size)
    roofline = Roofline(
        compute=traced_flops(traced.jaxpr.jaxpr) / mesh.size / tpu.chip.flops,
        memory=traffic / tpu.chip.memory_bandwidth,
        links=sum(one.sent for one in collectives) / tpu.chip.link_bandwidth,
    )
    return dataclasses.replace(
        plan,
        needed=memory.total,
        memory=memory,
        traffic=traffic,
        collectives=tuple(collectives),
        roofline=roofline,
    )


def search(experiment: Experiment, tpu: Slice, num_classes: int, num_images: int) -> Iterator[Plan]:
    """Yield the plan, then plans with one more change each, until one fits or no change is left.

    The arguments and errors are those of `make_plan`.
    """
    while True:
        plan = make_plan(experiment, tpu, num_classes, num_images)
        yield plan
        mesh = parallel.make_mesh(tpu.devices, plan.fsdp)
        run = assemble(experiment, mesh, num_classes, num_images)
        change = None if plan.fits else next(_changes(run, plan), None)
        if change is None:
            return
        experiment = dataclasses.replace(experiment, train=change[1])


def exhausted(message: str) -> tuple[int, int]:
    """Return the bytes needed and available, from the compiler's error for too little memory.

    The compiler may give up early, when the temporaries alone are too large.

    Raises:
      UserError: It is another error.
    """
    number = r"([\d.]+)([KMGT]?)"
    forms = rf"Used {number} of {number} hbm", rf"\({number}\) exceeds available HBM \({number}\)"
    found = next(filter(None, (re.search(form, message) for form in forms)), None)
    if not found:
        first_line = (message.strip() or "no reason given").splitlines()[0]
        raise UserError(f"The compiler cannot compile this step: {first_line}")
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed, unit, available, its_unit = found.groups()
    return round(float(needed) * units[unit]), round(float(available) * units[its_unit])


def _memory(found: Any) -> Memory:
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(
        arguments=found.argument_size_in_bytes,
        # Not `temp_size_in_bytes`. If memory is plenty, the TPU's compiler leaves gaps between
        # temporaries, and that size counts the gaps and the faster memory, too.
        temporaries=found.peak_memory_in_bytes - found.argument_size_in_bytes - outputs,
        outputs=outputs,
        program=found.generated_code_size_in_bytes,
    )


def _changes(run: Assembly, plan: Plan) -> Iterator[tuple[str, Train]]:
    """Yield (field, changed section) of `train` with a smaller step and the same result.

    The cheapest comes first: shard the train state if it takes more than a tenth of a chip,
    recompute transformer blocks, accumulate gradients.
    """
    train = run.experiment.train
    fsdp = 2 * train.fsdp
    while fsdp < plan.chips and plan.state / fsdp > plan.available / 10:
        fsdp *= 2
    if plan.state / train.fsdp > plan.available / 10 and plan.chips % fsdp == 0:
        yield "fsdp", dataclasses.replace(train, fsdp=fsdp)
    if not train.remat:
        yield "remat", dataclasses.replace(train, remat=True)
    parts = 2 * train.accumulate
    if train.batch_size % (parts * plan.chips) == 0 and run.objective.couples != "features":
        yield "accumulate", dataclasses.replace(train, accumulate=parts)


def _advice(run: Assembly, plan: Plan) -> Iterator[str]:
    train = run.experiment.train
    reasons = {
        "remat": "recompute transformer blocks in the backward pass",
        "fsdp": "shard the train state",
        "accumulate": "accumulate gradients (--search finds in how many parts)",
    }
    for name, changed in _changes(run, plan):
        yield f"--config.train.{name}={getattr(changed, name)}: {reasons[name]}"
    if getattr(run.objective, "key_chunk", 0) is None:
        yield "--config.objective.key_chunk=256: compare queries with fewer keys at a time"
    at_once = train.batch_size // train.accumulate // run.mesh.size
    if at_once > 1:
        yield f"a larger slice: each chip computes {at_once} images at a time"
        yield f"--config.train.batch_size={train.batch_size // 2}: this changes the result"
    larger = [n for n, other in CHIPS.items() if other.memory > max(plan.needed, plan.chip.memory)]
    if larger:
        yield f"chips with more memory: {', '.join(larger)}"
