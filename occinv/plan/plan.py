"""A run's memory, arithmetic, traffic and time on a mesh, from its compiled train step."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax

from occinv import parallel
from occinv.plan.chips import CHIPS, Chip
from occinv.plan.hlo import Collective, Program
from occinv.schema import Experiment, UserError
from occinv.train.assemble import Assembly, assemble, model_flops, trace_step
from occinv.train.flops import traced_flops
from occinv.train.step import init_state

log = logging.getLogger("occinv.plan")

ASSUMED = 0.4  # of the peak: an assumption to plan with, no measurement


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each chip while a step runs, when they are the most."""

    arguments: int  # the train state and the chip's part of the batch
    temporaries: int  # activations, gradients
    outputs: int  # those that do not take the place of an argument
    program: int

    @property
    def total(self) -> int:
        """What the compiler finds room for, or not: all but the program."""
        return self.arguments + self.temporaries + self.outputs


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least seconds of a step: each of its resources at its peak, all at the same time."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Seconds of a step that waits for the slowest resource alone."""
        return max(self.compute, self.memory, self.links)

    @property
    def bound(self) -> str:
        """Which resource that is."""
        return max(("compute", "memory", "links"), key=lambda name: getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs. Bytes, FLOPs and seconds are those of one chip in one step."""

    objective: str
    chips: int
    batch_size: int
    accumulate: int
    fsdp: int
    remat: bool
    dtype: str
    steps: int
    parameters: int
    flops_per_image: int  # in matrix products, forward and backward, each counted once
    state: int  # bytes of the train state, all of it
    needed: int  # bytes of memory, as the compiler says
    available: int  # bytes of memory, as the compiler says; the chip's without its word
    memory: Memory | None = None  # None, and the following, too: it does not fit
    traffic: int = 0  # bytes read from memory and written to it
    collectives: tuple[Collective, ...] = ()
    roofline: Roofline | None = None
    advice: tuple[str, ...] = ()  # what to change if it does not fit

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for it."""
        return self.memory is not None

    def as_dict(self, chip: Chip) -> dict[str, Any]:
        """All of it as types of JSON, with the durations of the run."""
        found = dataclasses.asdict(self) | {"fits": self.fits, "durations": self.durations(chip)}
        if self.memory and self.roofline:
            found["memory"]["total"] = self.memory.total
            found["roofline"] |= {name: getattr(self.roofline, name) for name in ("step", "bound")}
        return found

    def durations(self, chip: Chip) -> dict[str, dict[str, float]]:
        """Step seconds, hours, chip-hours and images a second: at the roofline and as assumed.

        `assumed` is ASSUMED of the peak, or the roofline where that allows less. Steps alone:
        without compiling, evaluating, saving, or waiting for data.
        """
        compute = self.flops_per_image * self.batch_size / self.chips / chip.flops
        seconds = {"assumed": compute / ASSUMED}
        if self.roofline:
            seconds["assumed"] = max(seconds["assumed"], self.roofline.step)
            seconds = {"roofline": self.roofline.step} | seconds
        return {
            name: {
                "step_seconds": step,
                "utilization": compute / step,
                "images_per_second": self.batch_size / step,
                "hours": step * self.steps / 3600,
                "chip_hours": step * self.steps * self.chips / 3600,
            }
            for name, step in seconds.items()
        }


def make_plan(
    experiment: Experiment, devices: list[jax.Device], chip: Chip, num_classes: int, num_images: int
) -> Plan:
    """Compiles the step that `train` would run on `devices`, without data, and reads its needs.

    An encoder that `init_from` names is not looked at. Raises UserError as `train` does.
    """
    mesh = parallel.make_mesh(devices, experiment.train.fsdp)
    run = assemble(experiment, mesh, num_classes, num_images)
    state = jax.eval_shape(lambda: init_state(run.objective, run.optimizer, experiment.seed))
    traced = trace_step(run, state)
    flops = traced_flops(traced.jaxpr.jaxpr)
    batch_size = experiment.train.batch_size
    plan = Plan(
        objective=experiment.objective["name"],
        chips=mesh.size,
        batch_size=batch_size,
        accumulate=experiment.train.accumulate,
        fsdp=experiment.train.fsdp,
        remat=experiment.train.remat,
        dtype=str(run.objective.setting.dtype),
        steps=run.steps,
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        flops_per_image=round(model_flops(run, state)),
        state=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        needed=0,
        available=chip.memory,
    )
    log.info("compiling the step of %d images on %d chips", batch_size, mesh.size)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        needed, available = exhausted(str(error))
        refused = dataclasses.replace(plan, needed=needed, available=available)
        return dataclasses.replace(refused, advice=tuple(advice(run, refused, chip)))
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    # Not `temp_size_in_bytes`: where memory is plenty, the TPU's compiler lays temporaries out
    # loosely, and that size counts the gaps and its fast memory, too.
    temporaries = found.peak_memory_in_bytes - found.argument_size_in_bytes - outputs
    memory = Memory(
        arguments=found.argument_size_in_bytes,
        temporaries=temporaries,
        outputs=outputs,
        program=found.generated_code_size_in_bytes,
    )
    program = Program(compiled.as_text())
    traffic, collectives = program.traffic(), program.collectives(mesh.size)
    roofline = Roofline(
        compute=flops / mesh.size / chip.flops,
        memory=traffic / chip.memory_bandwidth,
        links=sum(one.sent for one in collectives) / chip.link_bandwidth,
    )
    return dataclasses.replace(
        plan,
        needed=memory.total,
        memory=memory,
        traffic=traffic,
        collectives=tuple(collectives),
        roofline=roofline,
    )


def search(
    experiment: Experiment, devices: list[jax.Device], chip: Chip, num_classes: int, num_images: int
) -> Iterator[Plan]:
    """The plan, then those with one change more each (`changes`), until one fits or none is left.

    Raises UserError as `make_plan` does for the first.
    """
    while True:
        plan = make_plan(experiment, devices, chip, num_classes, num_images)
        yield plan
        run = assemble(experiment, parallel.make_mesh(devices, plan.fsdp), num_classes, num_images)
        change = None if plan.fits else next(changes(run, plan), None)
        if change is None:
            return
        experiment = dataclasses.replace(
            experiment, train=dataclasses.replace(experiment.train, **change)
        )


def changes(run: Assembly, plan: Plan) -> Iterator[dict[str, Any]]:
    """What leaves a run's outcome as it is and makes its step smaller: fields of `train`.

    The cheapest first: to share the train state where it takes more than a tenth of a chip, to
    compute whole blocks again, to take the batch in parts.
    """
    train = run.experiment.train
    shared = 2 * train.fsdp
    while shared < plan.chips and plan.state / shared > plan.available / 10:
        shared *= 2
    if plan.state / train.fsdp > plan.available / 10 and plan.chips % shared == 0:
        yield {"fsdp": shared}
    if not train.remat:
        yield {"remat": True}
    parts = 2 * train.accumulate
    if train.batch_size % (parts * plan.chips) == 0 and not run.objective.couples_before_measure:
        yield {"accumulate": parts}


def exhausted(said: str) -> tuple[int, int]:
    """Bytes needed and available, of the compiler's error. Raises UserError if it is another.

    It gives up at its first doubt with the temporaries alone, later with all that is needed.
    """
    number = r"([\d.]+)([KMGT]?)"
    forms = rf"Used {number} of {number} hbm", rf"\({number}\) exceeds available HBM \({number}\)"
    found = next(filter(None, (re.search(form, said) for form in forms)), None)
    if not found:
        first = (said.strip() or "no reason given").splitlines()[0]
        raise UserError(f"the compiler cannot compile this step: {first}")
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed, its, available, theirs = found.groups()
    return round(float(needed) * units[its]), round(float(available) * units[theirs])


def advice(run: Assembly, plan: Plan, chip: Chip) -> Iterator[str]:
    """What would make a step that does not fit smaller, cheapest first."""
    train = run.experiment.train
    reasons = {
        "remat": "blocks are computed again in the backward pass instead of kept",
        "fsdp": "chips that share one copy of the train state",
        "accumulate": "the batch in parts; more if need be (--search finds how many)",
    }
    for change in changes(run, plan):
        for name, value in change.items():
            yield f"--config.train.{name}={value}: {reasons[name]}"
    if getattr(run.objective, "block", 0) is None:
        yield "--config.objective.block=256 or so: a query meets fewer keys at once"
    at_once = train.batch_size // train.accumulate // run.mesh.size
    if at_once > 1:
        yield f"a larger slice: each chip has {at_once} images at once"
        yield f"--config.train.batch_size={train.batch_size // 2}: which is another run"
    least = max(plan.needed, chip.memory)
    larger = [name for name, other in CHIPS.items() if other.memory > least]
    if larger:
        yield f"chips with more memory: {', '.join(larger)}"
