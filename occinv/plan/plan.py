"""Plan a run on TPUs or GPUs: memory, arithmetic, traffic and time, from its compiled step."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax

from occinv import parallel
from occinv.plan import gpus
from occinv.plan.chips import CHIPS, Chip, Slice, parse
from occinv.plan.collectives import Collective, find_collectives
from occinv.plan.estimate import Estimate, estimate_step
from occinv.plan.hlo import Program
from occinv.schema import Experiment, Train, UserError
from occinv.train.flops import kernel_flops, model_flops, traced_flops
from occinv.train.step import Assembly, assemble, init_state, recomputes, trace_step

log = logging.getLogger("occinv.plan")

ASSUMED = 0.4  # share of the peak FLOP/s that a run reaches: an assumption, not a measurement


@dataclasses.dataclass(frozen=True)
class Memory:
    """The peak memory of a device during a step, in bytes.

    Attributes:
      arguments: The train state and the device's part of the batch.
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
    """The minimum seconds of a step for each resource. All resources work at the same time.

    Attributes:
      compute: Matrix products.
      memory: Reading from HBM and writing to HBM.
      links: Sending to other devices of the slice or node.
      network: Sending to other nodes.
    """

    compute: float
    memory: float
    links: float
    network: float = 0.0

    @property
    def step(self) -> float:
        """The minimum seconds of a step."""
        return max(self.compute, self.memory, self.links, self.network)

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        names = "compute", "memory", "links", "network"
        return max(names, key=lambda name: getattr(self, name))


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
    """The needs of a run. Bytes, FLOPs and seconds are those of one device in one step.

    Attributes:
      chips: The number of chips, or of GPUs.
      flops_per_image: The FLOPs of matrix products, forward and backward, without recomputation.
      state: The bytes of the whole train state.
      needed: The bytes of memory that the compiler asks for.
      available: The bytes of memory that the compiler or JAX has, or those of the device.
      memory: None if the step does not fit. Then the fields after it, but `advice`, are not set.
      traffic: The bytes read from HBM and written to HBM.
      estimate: The time that a TPU's compiler expects. It is None on GPUs.
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
    estimate: Estimate | None = None
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the step fits into the memory of a device."""
        return self.memory is not None

    @property
    def chip(self) -> Chip:
        """The chip of the slice."""
        return parse(self.topology)[0]

    @property
    def devices(self) -> int:
        """The number of devices."""
        return self.chips * self.chip.devices

    @property
    def paces(self) -> dict[str, Pace]:
        """The paces of a step: `roofline`, `estimated` and `assumed`.

        The first needs a step that fits, the second an estimate. The assumed pace uses ASSUMED of
        the peak FLOP/s. No pace is faster than the roofline.
        """
        compute = self.flops_per_image * self.batch_size / self.devices / self.chip.flops
        seconds = {"assumed": compute / ASSUMED}
        if self.roofline:
            guesses = {"estimated": self.estimate.step} if self.estimate else {}
            guesses |= seconds
            seconds = {"roofline": self.roofline.step}
            seconds |= {name: max(step, self.roofline.step) for name, step in guesses.items()}
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
        content["devices"] = self.devices
        if self.memory and self.roofline:
            content["memory"]["total"] = self.memory.total
            content["roofline"] |= {"step": self.roofline.step, "bound": self.roofline.bound}
        if self.estimate:
            content["estimate"]["step"] = self.estimate.step
        return content


def make_plan(experiment: Experiment, slice_: Slice, num_classes: int, num_images: int) -> Plan:
    """Compile the train step of `occinv train` for a slice, and read what it needs.

    It opens no data and does not read the run that `init_from` names.

    Args:
      experiment: The config.
      slice_: The TPU slice or the GPUs.
      num_classes: The number of classes of the data.
      num_images: The number of images in an epoch.

    Raises:
      UserError: The config is not valid on this slice.
    """
    mesh = parallel.make_mesh(slice_.devices, experiment.train.fsdp)
    run = assemble(experiment, mesh, num_classes, num_images)
    state = jax.eval_shape(lambda: init_state(run.objective, run.optimizer, experiment.seed))
    traced = trace_step(run, state)
    train, chip = experiment.train, slice_.chip
    plan = Plan(
        topology=slice_.topology,
        objective=experiment.objective["name"],
        chips=mesh.size // chip.devices,
        batch_size=train.batch_size,
        accumulate=train.accumulate,
        fsdp=train.fsdp,
        remat=recomputes(train, mesh),
        dtype=str(run.objective.setting.dtype),
        steps=run.steps,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        flops_per_image=round(model_flops(run, state)),
        state=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        needed=0,
        available=chip.available,
    )
    log.info("compiling the step of %d images on %d devices", train.batch_size, mesh.size)
    try:
        compiled = traced.lower().compile(compiler_options=gpus.options() if chip.is_gpu else None)
    except jax.errors.JaxRuntimeError as error:
        needed, available = exhausted(str(error))
        plan = dataclasses.replace(plan, needed=needed, available=available)
        return dataclasses.replace(plan, advice=tuple(_advice(run, plan)))
    memory = _memory(compiled.memory_analysis(), chip)
    plan = dataclasses.replace(plan, needed=memory.total)
    if chip.is_gpu and plan.needed > plan.available:  # a GPU's compiler does not refuse it
        return dataclasses.replace(plan, advice=tuple(_advice(run, plan)))
    program = Program(compiled.as_text())
    traffic = program.traffic()
    per_node = parse(slice_.topology)[1][1] if chip.is_gpu else mesh.size
    collectives = find_collectives(program, mesh.size, per_node, chip.devices)
    network = sum(one.network for one in collectives)
    roofline = Roofline(
        compute=traced_flops(traced.jaxpr.jaxpr) / mesh.size / chip.flops,
        memory=traffic / chip.memory_bandwidth,
        links=sum(one.sent for one in collectives) / chip.link_bandwidth,
        network=network / chip.network_bandwidth if network else 0.0,
    )
    in_kernels = kernel_flops(traced.jaxpr.jaxpr) / mesh.size
    return dataclasses.replace(
        plan,
        memory=memory,
        traffic=traffic,
        collectives=tuple(collectives),
        roofline=roofline,
        estimate=estimate_step(program, chip, mesh.size, in_kernels),
    )


def search(
    experiment: Experiment, slice_: Slice, num_classes: int, num_images: int
) -> Iterator[Plan]:
    """Yield the plan, then plans with one more change each, until one fits or no change is left.

    The arguments and errors are those of `make_plan`.
    """
    while True:
        plan = make_plan(experiment, slice_, num_classes, num_images)
        yield plan
        mesh = parallel.make_mesh(slice_.devices, plan.fsdp)
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


def _memory(found: Any, chip: Chip) -> Memory:
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    # A GPU allocates all temporaries at once, with the gaps between them. On a TPU this size is not
    # used: if memory is plenty, the compiler leaves gaps, and it counts the faster memory, too.
    temporaries = found.temp_size_in_bytes
    if not chip.is_gpu:
        temporaries = found.peak_memory_in_bytes - found.argument_size_in_bytes - outputs
    return Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=temporaries,
        outputs=outputs,
        program=found.generated_code_size_in_bytes,
    )


def _changes(run: Assembly, plan: Plan) -> Iterator[tuple[str, Train]]:
    """Yield (field, changed section) of `train` with a smaller step and the same result.

    The cheapest comes first: shard the train state if it takes more than a tenth of a device,
    recompute transformer blocks, accumulate gradients.
    """
    train = run.experiment.train
    fsdp = 2 * train.fsdp
    while fsdp < plan.devices and plan.state / fsdp > plan.available / 10:
        fsdp *= 2
    if plan.state / train.fsdp > plan.available / 10 and plan.devices % fsdp == 0:
        yield "fsdp", dataclasses.replace(train, fsdp=fsdp)
    if not recomputes(train, run.mesh):
        yield "remat", dataclasses.replace(train, remat=True)
    parts = 2 * train.accumulate
    if train.batch_size % (parts * plan.devices) == 0 and run.objective.couples != "features":
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
        larger = "more GPUs" if plan.chip.is_gpu else "a larger slice"
        yield f"{larger}: each {plan.chip.unit} computes {at_once} images at a time"
        yield f"--config.train.batch_size={train.batch_size // 2}: this changes the result"
    needed = max(plan.needed, plan.chip.available)
    like = {n: other for n, other in CHIPS.items() if other.is_gpu == plan.chip.is_gpu}
    if names := [name for name, other in like.items() if other.available > needed]:
        yield f"{'GPUs' if plan.chip.is_gpu else 'chips'} with more memory: {', '.join(names)}"
