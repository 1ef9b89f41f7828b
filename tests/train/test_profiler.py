"""`train.profile` traces the steps it names, and every large operation has the name of its part."""

from __future__ import annotations

import gzip
import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_runs import (
    CONFIGS,
    Crash,
    assert_same_end,
    at_step,
    crash,
    losses,
    overrides,
    run,
    tiny,
    toy_config,
)

from occinv import parallel, schema
from occinv.config import load_config
from occinv.train import loop
from occinv.train import workdir as files
from occinv.train.clock import Clock
from occinv.train.step import assemble, init_state, trace_step

pytestmark = pytest.mark.usefixtures("compiled")  # runs of one shape compile once


@pytest.fixture(scope="module")
def arguments(images: Path) -> list[str]:
    """`--config …` of eight steps of Toy, logged at every step and saved at every second."""
    often = overrides("train.log_every.steps=1", "train.checkpoint_every.steps=2")
    return ["--config", f"{toy_config(images.parent)}:{images}", *often]


def traced_steps(workdir: Path) -> list[int]:
    """The step numbers in the one trace of a run."""
    (folder,) = (workdir / files.PROFILE / "plugins" / "profile").iterdir()
    assert len(list(folder.glob("*.xplane.pb"))) == 1
    with gzip.open(folder / "perfetto_trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    return [int(e["args"]["step_num"]) for e in events if e.get("name") == "train"]


def test_a_profile_has_its_steps_and_does_not_change_the_run(
    arguments: list[str], tmp_path: Path
) -> None:
    run(arguments, tmp_path / "traced", "train.profile=(3,2)")
    assert traced_steps(tmp_path / "traced") == [3, 4]
    run(arguments, tmp_path / "plain")
    assert not (tmp_path / "plain" / files.PROFILE).exists()
    assert_same_end(tmp_path / "traced", tmp_path / "plain")


def test_a_run_that_resumes_after_the_first_step_is_not_traced(
    arguments: list[str], tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        run(arguments, tmp_path, watch=at_step(5, crash))
    run(arguments, tmp_path, "train.profile=(4,3)")  # continues with step 5
    assert list(losses(tmp_path)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert not (tmp_path / files.PROFILE).exists()


def test_a_run_that_stops_within_the_profile_writes_it(
    arguments: list[str], tmp_path: Path
) -> None:
    stop = at_step(5, lambda: signal.raise_signal(signal.SIGTERM))
    assert run(arguments, tmp_path, "train.profile=(4,100)", watch=stop).step == 5
    assert traced_steps(tmp_path) == [4, 5]
    run(arguments, tmp_path / "other", "train.profile=(7,100)")  # the profiler is free again
    assert traced_steps(tmp_path / "other") == [7, 8]


def test_other_processes_write_no_profile(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with loop.Profiler(tmp_path, (1, 1)) as profiler:
        with profiler.step(1):
            pass
        assert profiler.end_step(1, {}) == 0
    assert not list(tmp_path.iterdir())


def test_excluded_time_does_not_lower_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 6.0])
    monkeypatch.setattr("occinv.train.clock.time.monotonic", lambda: next(now))
    clock = Clock()
    clock.steps = 1
    clock.exclude(2.0)
    assert clock.rates(8)["images_per_second"] == 2  # 8 images in 6 - 2 seconds


PARTS = {"rng", "gather", "scatter", "ema", "views", "features", "loss", "optimizer",
         "finite_check", "accumulate"}  # fmt: skip
NO_WORK = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "broadcast", "iota",
           "copy"}  # fmt: skip


def operations(text: str) -> list[tuple[int, str]]:
    """The size of the output and the `op_name` of each operation of a program."""
    found = []
    for line in text.splitlines():
        shape = re.match(r"\s*(?:ROOT )?%\S+ = \w+\[([\d,]*)\]\S* ([\w-]+)\(", line)
        if shape and shape[2] not in NO_WORK:
            size = math.prod(map(int, filter(None, shape[1].split(","))))
            name = re.search(r'op_name="([^"]*)"', line)
            found.append((size, name[1] if name else ""))
    return found


@pytest.mark.parametrize("parts", [1, 2])
def test_every_large_operation_has_the_name_of_its_part(parts: int, images: Path) -> None:
    """C-MAE has every part. Operations that the compiler adds may have no name."""
    fields = ("encoder.depth=6", "encoder.width=64", "objective.head_out=64")
    arguments = tiny("cmae", images, *fields, f"train.accumulate={parts}")
    experiment = schema.resolve(load_config(arguments[1], arguments[2:]))
    assembly = assemble(experiment, parallel.make_mesh(jax.devices()[:1]), 2, 24)
    state: Any = jax.eval_shape(
        lambda: init_state(assembly.objective, assembly.optimizer, experiment.seed)
    )
    text = trace_step(assembly, state).lower().compile().as_text()
    large = [(size, name, set(re.findall(r"\w+", name))) for size, name in operations(text)
             if size >= 1024]  # fmt: skip
    large = [x for x in large if x[1] != "jit(step)/broadcast_in_dim"]  # zeros of autodiff
    assert not [name for _, name, words in large if name and not words & PARTS]
    unnamed = sum(size for size, name, _ in large if not name)
    assert unnamed < 0.1 * sum(size for size, _, _ in large)
    names = set().union(*(words for _, _, words in large))
    expected = PARTS - {"rng", "gather", "scatter"} - ({"accumulate"} if parts == 1 else set())
    assert expected <= names
    assert {"encoder", "blocks", "attention", "mlp", "projector", "predictor"} <= names


def test_plan_refuses_what_train_refuses() -> None:
    fields = overrides("train.profile=(9,1)", "train.batch_size=8", "train.duration.steps=8")
    experiment = schema.resolve(load_config(str(CONFIGS / "mae.py:smoke"), fields))
    with pytest.raises(schema.UserError, match=r"^train.profile=\(9, 1\): step 9 is after"):
        assemble(experiment, parallel.make_mesh(jax.devices()[:1]), 2, 24)
