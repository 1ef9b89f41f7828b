"""Tests of plans, against `train` on the same devices and against arithmetic by hand.

The TPU's compiler (700 MB) is not a test dependency. The programs here are compiled for eight CPU
devices in place of a slice.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from pathlib import Path

import jax
import pytest
from rich.console import Console
from tiny_runs import overrides, tiny

from occinv import cli, parallel, schema
from occinv.config import load_config
from occinv.plan import chips, plan
from occinv.plan.chips import CHIPS, GIB, Slice
from occinv.plan.collectives import Collective
from occinv.plan.estimate import Estimate
from occinv.plan.plan import Memory, Plan, Roofline, exhausted, make_plan, search
from occinv.plan.show import print_plan
from occinv.schema import Experiment, UserError
from occinv.train.checkpoints import Checkpoints
from occinv.train.flops import model_flops, traced_flops
from occinv.train.loop import start_or_resume
from occinv.train.prepare import prepare
from occinv.train.step import assemble, init_state, split_state, trace_step

SLICE = Slice("v5e:2x4", CHIPS["v5e"], jax.devices())
NOWHERE = Path("no/such/folder")  # a plan opens no data
# The compiler's errors for a step that is too large, and for one that is much too large.
EXHAUSTED = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 27.06G of 15.75G hbm. Exceeded hbm capacity by 11.31G.\n\nTotal hbm usage >= 27.31G:\n"
)
EARLY = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
    "(53.22G) exceeds available HBM (15.75G)."
)


def experiment(config: str, *fields: str, images: Path = NOWHERE) -> Experiment:
    spec, *given = tiny(config, images, *fields)[1:]
    return schema.resolve(load_config(spec, given))


@pytest.fixture(scope="module")
def planned() -> Plan:
    return make_plan(experiment("mae"), SLICE, 2, 24)


def test_plan_and_train_have_the_same_step(images: Path) -> None:
    for config in ("mae", "finetune"):
        run = prepare(experiment(config, images=images)).assembly
        parts = assemble(experiment(config), parallel.make_mesh(), 2, 24)
        state = jax.eval_shape(lambda p=parts: init_state(p.objective, p.optimizer, 0))
        steps = [str(trace_step(part, state).jaxpr) for part in (run, parts)]
        assert steps[0].split(" at 0x") == steps[1].split(" at 0x")
        assert run.steps == parts.steps


@pytest.mark.parametrize("fsdp", [1, 4])
def test_arguments_are_the_bytes_that_train_puts_on_a_device(
    fsdp: int, planned: Plan, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fsdp > 1:
        monkeypatch.setattr(parallel, "SHARDED_FROM", 256)
        given = experiment("mae", f"train.fsdp={fsdp}", "train.remat=True")
        planned = make_plan(given, SLICE, 2, 24)
    run = prepare(experiment("mae", f"train.fsdp={fsdp}", images=images))
    with Checkpoints(images / f"none{fsdp}") as none:
        state = start_or_resume(run, none)
    batch = parallel.put_batch(run.assembly.mesh, run.loader.batch(0))
    first = jax.devices()[0]

    def on_first(tree: object) -> int:
        leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "addressable_shards")]
        shards = [s for x in leaves for s in x.addressable_shards if s.device == first]
        return sum(s.data.nbytes for s in shards)

    assert planned.memory
    # MAE does not use labels and indices, so the compiler may drop them.
    unused = on_first((batch.label, batch.index))
    whole = on_first((state, batch))
    assert whole - unused <= planned.memory.arguments <= whole
    assert planned.state == sum(x.nbytes for x in jax.tree.leaves(state))
    assert on_first(state) < (0.4 * planned.state if fsdp > 1 else planned.state + 1)
    if fsdp > 1:  # parameters and gradients are sent, activations are not
        sent = {one.operation: one.sent for one in planned.collectives}
        assert sent.keys() == {"all-gather", "all-reduce"}
        once = 4 * planned.parameters * (fsdp - 1) / fsdp
        assert 0.9 * once < sent["all-gather"] < 2 * once
    assert planned.parameters == sum(x.size for x in jax.tree.leaves(state.params))
    assert planned.memory.outputs < 0.03 * planned.memory.arguments  # metrics


def test_the_plan_counts_the_gradients_that_devices_exchange(planned: Plan) -> None:
    (reduced,) = planned.collectives
    assert reduced.operation == "all-reduce"
    learned = 4 * planned.parameters
    assert 0.8 * learned < reduced.bytes < 1.1 * learned  # position embeddings are fixed
    assert reduced.sent == round(reduced.bytes * 2 * 7 / 8)


@pytest.mark.parametrize("depth", [2, 6])  # 6 is a loop: the compiler counts one iteration
def test_flops_equal_the_compilers_without_loops(depth: int) -> None:
    fields = ("encoder.width=128", f"encoder.depth={depth}", "data.image_size=32")
    run = assemble(experiment("mae", *fields), parallel.make_mesh(), 2, 24)
    state = jax.eval_shape(lambda: init_state(run.objective, run.optimizer, 0))
    traced = trace_step(run, state)
    ours = traced_flops(traced.jaxpr.jaxpr)
    theirs = traced.lower().cost_analysis()["flops"]
    if depth == 2:
        assert ours < theirs < 1.25 * ours  # they include sums
    else:
        assert theirs < 0.7 * ours


def test_model_flops_do_not_count_recomputation() -> None:
    deep = ("train.batch_size=16", "encoder.depth=6", "objective.decoder_depth=5")
    counts = set()
    for fields in (deep, (*deep, "train.remat=True"), (*deep, "train.accumulate=2")):
        run = assemble(experiment("mae", *fields), parallel.make_mesh(), 2, 24)
        state = jax.eval_shape(lambda run=run: init_state(run.objective, run.optimizer, 0))
        split = jax.eval_shape(functools.partial(split_state, run), state)
        counts.add(model_flops(run, state, trace_step(run, split)))
        again = traced_flops(trace_step(run, state).jaxpr.jaxpr) / 16 - max(counts)
        assert 0 < again < 0.5 * max(counts)
    assert len(counts) == 1


def test_a_roofline_by_hand() -> None:
    line = Roofline(compute=0.2, memory=0.5, links=0.1)
    assert (line.step, line.bound) == (0.5, "memory")


FITS = Plan(
    topology="v5e:16x16",
    objective="mae",
    chips=256,
    batch_size=4096,
    accumulate=1,
    fsdp=1,
    remat=False,
    dtype="bfloat16",
    steps=36000,
    parameters=111_000_000,
    flops_per_image=60_000_000_000,
    state=1_300_000_000,
    needed=4 * GIB + 100,
    available=16 * GIB,
    memory=Memory(1 * GIB, 3 * GIB, 100, GIB // 8),
    traffic=10**10,
    collectives=(Collective("all-reduce", 14, 440 * 10**6, 876 * 10**6),),
    roofline=Roofline(60e9 * 16 / 197e12, 10e9 / 819e9, 876e6 / 200e9),
)


def test_paces_by_hand() -> None:
    step = 10e9 / 819e9  # memory is the bound: at most 39.9 % of the peak
    assert FITS.roofline and FITS.roofline.bound == "memory"
    for pace in FITS.paces.values():
        assert pace.step_seconds == pytest.approx(step)
        assert pace.hours == pytest.approx(step * 10)
        assert pace.chip_hours == pytest.approx(step * 2560)
        assert pace.images_per_second == pytest.approx(4096 / step)
    free = dataclasses.replace(FITS, roofline=Roofline(60e9 * 16 / 197e12, 0.0, 0.0))
    assert free.paces["roofline"].utilization == 1
    assert free.paces["assumed"].utilization == pytest.approx(0.4)


def test_a_plan_as_json_by_hand() -> None:
    found = json.loads(json.dumps(FITS.as_json()))
    assert found["topology"] == "v5e:16x16"
    assert found["fits"]
    assert found["memory"]["total"] == 4 * GIB + 100
    assert found["roofline"]["bound"] == "memory"
    assert found["durations"]["roofline"]["hours"] == pytest.approx(10e9 / 819e9 * 10)
    assert found["durations"].keys() == {"roofline", "assumed"}


class Loose:
    """An analysis in which gaps and faster memory are a third of the temporaries."""

    peak_memory_in_bytes = 20 * GIB
    argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 3 * GIB, GIB + 10, GIB
    temp_size_in_bytes, generated_code_size_in_bytes = 27 * GIB, 40


def test_memory_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: Loose)
    found = make_plan(experiment("mae"), SLICE, 2, 24)
    assert found.memory == Memory(3 * GIB, 17 * GIB - 10, 10, 40)
    assert found.needed == 20 * GIB


def test_exhausted_reads_both_errors_of_the_compiler() -> None:
    needed, available = exhausted(EXHAUSTED)
    assert needed == round(27.06 * GIB)
    assert available == round(15.75 * GIB)
    assert exhausted(EARLY) == (round(53.22 * GIB), available)
    assert exhausted("Used 512.5M of 1.0G hbm") == (round(512.5 * 2**20), GIB)
    with pytest.raises(UserError, match=r"cannot compile this step: INTERNAL: no$"):
        exhausted("INTERNAL: no\nmore")


@pytest.mark.parametrize(
    ("config", "batch", "fits_from", "state", "tried"),
    [
        ("mae", 64, 1, 1, ["0 1 1"]),
        ("mae", 64, 4, 1, ["0 1 1", "1 1 1", "1 1 2", "1 1 4"]),
        # A state of a quarter of a chip is sharded over 4; in 8 parts a device has one image.
        ("mae", 64, 99, 4, ["0 1 1", "0 4 1", "1 4 1", "1 4 2", "1 4 4", "1 4 8"]),
        ("mae", 24, 99, 99, ["0 1 1", "0 8 1", "1 8 1"]),
        ("linear", 64, 99, 1, ["0 1 1", "1 1 1"]),  # batch norm
    ],
)  # fmt: skip
def test_a_search_changes_one_field_at_a_time_until_the_step_fits(
    config: str,
    batch: int,
    fits_from: int,
    state: int,
    tried: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def small(experiment: Experiment, *rest: object) -> Plan:
        train = experiment.train
        return dataclasses.replace(
            FITS,
            chips=8,
            state=state * GIB,
            memory=FITS.memory if train.accumulate >= fits_from else None,
            remat=bool(train.remat),
            **{name: getattr(train, name) for name in ("fsdp", "accumulate")},
        )

    monkeypatch.setattr(plan, "make_plan", small)
    given = experiment(config, f"train.batch_size={batch}"), SLICE, 2, 2400
    assert [f"{one.remat:d} {one.fsdp} {one.accumulate}" for one in search(*given)] == tried


def refused(monkeypatch: pytest.MonkeyPatch, config: str, *fields: str) -> Plan:
    """The plan of a step for which the compiler reports too little memory."""

    class Refusing:
        def __init__(self, traced: object) -> None:
            self.jaxpr = traced.jaxpr  # type: ignore[attr-defined]

        def lower(self) -> None:
            raise jax.errors.JaxRuntimeError(EXHAUSTED)

    monkeypatch.setattr(plan, "trace_step", lambda *given: Refusing(trace_step(*given)))
    return make_plan(experiment(config, *fields), SLICE, 2, 2400)


def test_a_plan_that_does_not_fit_has_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    found = refused(monkeypatch, "mae", "train.batch_size=64")
    assert not found.fits
    assert found.needed == round(27.06 * GIB)
    words = " ".join(found.advice)
    for change in ("remat=True", "accumulate=2", "batch_size=32"):
        assert f"train.{change}" in words
    assert "fsdp" not in words  # the train state is small
    assert "v4, v5p, v6e" in words
    assert "objective.key_chunk" not in words
    words = " ".join(refused(monkeypatch, "linear", "train.batch_size=64").advice)
    assert "accumulate" not in words
    words = " ".join(refused(monkeypatch, "cmae", "train.batch_size=64").advice)
    assert "objective.key_chunk=" in words


GPUS = Slice("h100:2x4", CHIPS["h100"], jax.devices())


def test_a_plan_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    found = make_plan(experiment("mae"), GPUS, 2, 24)
    assert found.fits and found.memory and found.roofline
    assert found.available == round(0.75 * CHIPS["h100"].memory)
    (reduced,) = found.collectives  # 2 nodes of 4: 3 / 4 twice, and a half of a quarter twice
    assert reduced.sent == pytest.approx(reduced.bytes * 1.5, rel=1e-6)
    assert reduced.network == pytest.approx(reduced.bytes / 4, rel=1e-6)
    assert found.roofline.links == reduced.sent / 450e9
    assert found.roofline.network == reduced.network / 50e9
    assert found.estimate is None
    said = shown(found)
    for words in ("8 GPUs", "per GPU", "network", "to other nodes", "GPU-hours"):
        assert words in said


def test_a_plan_for_gpus_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler of a GPU accepts a step that is too large."""
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "1e-6")
    found = make_plan(experiment("mae", "train.batch_size=64"), GPUS, 2, 2400)
    assert not found.fits
    assert found.needed > found.available == round(1e-6 * CHIPS["h100"].memory)
    assert found.paces.keys() == {"assumed"}
    words = " ".join(found.advice)
    assert "train.remat=True" in words
    assert "more GPUs: each GPU computes 8 images" in words
    assert "v5p" not in words
    assert "does not fit" in shown(found)


def test_all_temporaries_of_a_gpu_are_allocated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: Loose)
    found = make_plan(experiment("mae"), GPUS, 2, 24)
    assert found.memory == Memory(3 * GIB, 27 * GIB, 10, 40)


def test_a_chip_of_two_devices() -> None:
    found = make_plan(experiment("mae"), Slice("tpu7x:2x2x1", CHIPS["tpu7x"], jax.devices()), 2, 24)
    assert (found.chips, found.devices) == (4, 8)
    assert found.roofline
    pace = found.paces["roofline"]
    assert pace.chip_hours == pytest.approx(4 * pace.hours)
    chip_flops = 2307e12  # of both devices
    assert pace.utilization == pytest.approx(
        found.flops_per_image * found.batch_size / 4 / chip_flops / pace.step_seconds
    )
    assert "4 chips (8 devices)" in shown(found)
    assert found.as_json()["devices"] == 8


def test_the_estimate_is_printed_as_an_estimate() -> None:
    guess = Estimate(instructions=0.02, kernels=0.003, collectives=0.002)
    plan = dataclasses.replace(FITS, estimate=guess)
    assert plan.paces["estimated"].step_seconds == pytest.approx(0.025)
    assert plan.as_json()["estimate"]["step"] == pytest.approx(0.025)
    said = " ".join(shown(plan).split())
    assert "as the compiler estimates" in said
    assert "The compiler's estimate, not a measurement: 20 ms of instructions" in said
    assert "3 ms of Pallas kernels at their roofline, 2 ms of synchronous collectives" in said
    faster = dataclasses.replace(FITS, estimate=Estimate(1e-9, 0.0, 0.0))
    assert faster.paces["estimated"] == faster.paces["roofline"]


def shown(plan: Plan) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_plan(plan, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_plan_is_printed_in_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(FITS)
    for words in ("mae on v5e:16x16", "4 GiB", "memory (the bound)", "all-reduce", "60 GFLOP"):
        assert words in said
    assert max(map(len, said.splitlines())) <= 100
    said = shown(refused(monkeypatch, "mae", "train.batch_size=64"))
    assert "does not fit: needs at least 27.06 GiB of 15.75 GiB" in said
    assert max(map(len, said.splitlines())) <= 100


def test_the_command_writes_its_plan(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chips, "describe_slice", lambda topology: SLICE)
    arguments = ["plan", *tiny("mae", NOWHERE), "--topology", "v5e:2x4", "--num-images", "24"]
    assert cli.main([*arguments, "--out", str(tmp_path / "plans" / "mae.json")]) == 0
    assert "mae on v5e:2x4" in capsys.readouterr().out
    found = json.loads((tmp_path / "plans" / "mae.json").read_text())
    assert found["fits"]
    assert found["memory"]["total"] == found["needed"]
    assert cli.main([*arguments, "--num-classes", "0"]) == 2
    assert "--num-classes 0, expected 1 or more" in capsys.readouterr().err
    assert cli.main([*arguments, *overrides("train.batch_size=12")]) == 2
    assert "=12 is not divisible by the 8 devices" in capsys.readouterr().err


def test_precision_depends_on_the_mesh() -> None:
    class Device:
        platform = "tpu"

    class Mesh:
        class devices:
            flat = (Device,)

    assert parallel.compute_dtype("auto", Mesh) == jax.numpy.bfloat16  # type: ignore[arg-type]
    assert parallel.compute_dtype("auto", parallel.make_mesh()) == jax.numpy.float32
