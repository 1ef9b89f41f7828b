"""A run on several processes is the run on one: its losses, its stops, its restarts."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from forked import Forked
from tiny_runs import losses, make_images, overrides, run, start, start_several, toy_config

from occinv import parallel
from occinv.cli import main
from occinv.train import workdir as files

LONG = ("train.duration.steps=300", "train.checkpoint_every.steps=20", "train.keep=2")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--config …` of eight steps of Toy, logged at every step."""
    images = make_images(tmp_path_factory.mktemp("data") / "images")
    spec = f"{toy_config(images.parent)}:{images}"
    return ["--config", spec, *overrides("train.log_every.steps=1")]


@pytest.fixture(scope="module")
def long_losses(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Of a run of 300 steps that nothing disturbed, on one process."""
    workdir = tmp_path_factory.mktemp("long") / "run"
    run(arguments, workdir, *LONG)
    return losses(workdir)


def begin(count: int, arguments: list[str], workdir: Path, *fields: str) -> list[Forked]:
    """`occinv train` on so many processes of one device each."""
    command = ["train", *arguments, *overrides(*fields), "--workdir", str(workdir)]
    return start_several(count, command)


def ended(processes: list[Forked]) -> list[tuple[int, str, str]]:
    """(status, output, errors) of each, in order."""
    shown = [process.communicate(timeout=200) for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, shown, strict=True)]


def wait_for(path: Path, processes: list[Forked]) -> None:
    for _ in range(3000):
        if path.exists():
            return
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)
    raise AssertionError(f"{path} never came")


def assert_close(ours: dict[int, float], theirs: dict[int, float]) -> None:
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-4)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_have_the_losses_of_one(
    count: int, arguments: list[str], tmp_path: Path
) -> None:
    outcomes = ended(begin(count, arguments, tmp_path / "several"))
    assert [status for status, _, _ in outcomes] == [0] * count, outcomes
    # Process 0 speaks and writes for all.
    assert "8 steps done" in outcomes[0][1]
    said = [line for _, shown, _ in outcomes[1:] for line in shown.splitlines()]
    assert [line for line in said if not line.startswith("[Gloo]")] == []
    assert len(list((tmp_path / "several").glob("events.out.tfevents*"))) == 1
    run(arguments, tmp_path / "one")
    assert_close(losses(tmp_path / "several"), losses(tmp_path / "one"))
    results = [json.loads((tmp_path / n / files.RESULT).read_text()) for n in ("one", "several")]
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], rel=1e-5)


def test_a_signal_to_one_stops_all_at_the_same_step(
    arguments: list[str], long_losses: dict[int, float], tmp_path: Path
) -> None:
    processes = begin(2, arguments, tmp_path, *LONG)
    wait_for(tmp_path / files.CHECKPOINTS / "20", processes)
    os.kill(processes[1].pid, signal.SIGTERM)
    outcomes = ended(processes)
    assert [status for status, _, _ in outcomes] == [143, 143], outcomes
    stopped = files.load_run(tmp_path).step
    assert f"stopped and saved at step {stopped} of 300" in outcomes[0][1]
    assert max(losses(tmp_path)) == stopped
    run(arguments, tmp_path, *LONG)  # on one process, with eight devices
    assert_close(losses(tmp_path), long_losses)


def test_a_peer_that_is_killed_ends_the_others(
    arguments: list[str], long_losses: dict[int, float], tmp_path: Path
) -> None:
    processes = begin(2, arguments, tmp_path, *LONG)
    wait_for(tmp_path / files.CHECKPOINTS / "20", processes)
    processes[1].kill()
    begun = time.monotonic()
    processes[0].wait(timeout=parallel.PEER_TIMEOUT + 30)
    status, _, errors = ended(processes)[0]
    assert time.monotonic() - begun < parallel.PEER_TIMEOUT + 30
    assert status not in (0, 143), errors
    assert files.load_run(tmp_path).step < 300
    outcomes = ended(begin(4, arguments, tmp_path, *LONG))  # and on more processes than before
    assert [status for status, _, _ in outcomes] == [0] * 4, outcomes
    assert_close(losses(tmp_path), long_losses)


def test_a_mistake_on_several_processes_ends_them_all(arguments: list[str], tmp_path: Path) -> None:
    """Only process 0 sees that the workdir is taken; the other would wait for it for ever."""
    run(arguments, tmp_path)
    (tmp_path / files.RESULT).unlink()
    outcomes = ended(begin(2, arguments, tmp_path, "seed=1"))
    for status, _, errors in outcomes:
        assert status == 2
        assert "holds a run with seed=0 (now 1)" in errors.splitlines()[-1]


def test_processes_that_differ_do_not_begin(arguments: list[str], tmp_path: Path) -> None:
    """Another seed on process 1."""
    command = ["train", *arguments, "--workdir", str(tmp_path / "run")]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    together = ["--coordinator", coordinator, "--num-processes", "2", "--process-id"]
    processes = [start([*command, *together, str(i), *overrides(f"seed={i}")]) for i in range(2)]
    for status, _, errors in ended(processes):
        assert status == 2
        said = errors.splitlines()[-1]
        assert "process 1 differs from process 0: config.seed=1 (process 0 has 0)" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--num-processes", "2"], "--coordinator and --process-id missing"),
        (
            ["--coordinator", "localhost", "--num-processes", "2", "--process-id", "1"],
            "--coordinator 'localhost', expected HOST:PORT",
        ),
        (
            ["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "2"],
            "--process-id 2, expected 0 to 1",
        ),
        (
            ["--coordinator", "localhost:1", "--num-processes", "0", "--process-id", "0"],
            "--num-processes 0, expected 1 or more",
        ),
        (
            ["--coordinator", "h:" + "1" * 5000, "--num-processes", "2", "--process-id", "1"],
            "expected HOST:PORT",
        ),
    ],
)
def test_processes_that_cannot_be(
    given: list[str],
    said: str,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", *arguments, "--workdir", str(tmp_path / "run"), *given]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_port_in_use_is_named(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("localhost", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"
        given = ["--coordinator", address, "--num-processes", "2", "--process-id", "0"]
        assert main(["train", *arguments, "--workdir", str(tmp_path / "run"), *given]) == 2
    assert f"--coordinator {address}: process 0 cannot listen" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
