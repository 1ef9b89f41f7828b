"""The bar on a terminal and the lines in a log."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from occinv.progress import Progress

METRICS = {"loss": 0.25, "images_per_second": 1200.4}


def show(is_terminal: bool) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=40, highlight=False, markup=False)
    return Progress(console=console), out


def text_of(progress: Progress) -> str:
    """What the bar shows now, where there is room for it."""
    console = Console(file=io.StringIO(), width=200)
    console.print(progress._bars.get_renderable())
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_bar_says_that_it_compiles_until_the_first_step() -> None:
    progress, _ = show(is_terminal=True)
    with progress:
        watch = progress.stage("mae")
        assert "mae" in text_of(progress)
        assert "compiling" in text_of(progress)
        watch(1, 4, None)
        assert "compiling" not in text_of(progress)
        assert "step 1/4" in text_of(progress)
        watch(2, 4, METRICS)
        watch(3, 4, None)  # the last logged numbers stay
        assert "step 3/4, loss 0.250, 1200 images/s" in text_of(progress)
        watch(4, 4, METRICS)
        assert "mae" not in text_of(progress)


def test_a_stage_that_took_no_step_leaves_no_bar() -> None:
    progress, _ = show(is_terminal=True)
    with progress:
        progress.stage("finished")
        progress.stage("next")
        assert "finished" not in text_of(progress)
    assert not progress._bars.tasks


def test_a_log_has_one_line_for_each_logged_step() -> None:
    progress, out = show(is_terminal=False)
    now = 0.0
    progress._bars.get_time = lambda: now
    with progress:
        watch = progress.stage("mae")
        for step in range(1, 5):
            now += 10
            watch(step, 4, METRICS if step % 2 == 0 else None)
    assert out.getvalue().splitlines() == [
        "mae: step 2/4, loss 0.250, 1200 images/s, 0:00:20 left",
        "mae: step 4/4, loss 0.250, 1200 images/s",
    ]


def test_brackets_in_a_name_are_no_markup() -> None:
    progress, out = show(is_terminal=True)
    with progress:
        progress.stage("run [/b]")
        assert "run [/b]" in text_of(progress)
        progress.say("saved [/b]")
    assert "saved [/b]" in out.getvalue()


def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path: Path) -> None:
    end = tmp_path / "end"
    code = f"""
from pathlib import Path
from occinv.progress import LastingConsole, Progress
with Progress(console=LastingConsole()) as progress:
    input()
    for step in range(3):
        progress.say(str(step))
    print("done", flush=True)
    Path({str(end)!r}).touch()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()  # type: ignore[union-attr]
        process.stdout = None
        _, errors = process.communicate("\n")
    assert (process.returncode, errors) == (0, "")
    assert end.exists()


@pytest.mark.parametrize(
    ("command", "status"),
    [(["config", "mae"], 141), (["--help"], 0), (["list"], 1)],  # 1: rich's, for tables
)
def test_a_command_ends_silently_when_nobody_reads_its_output(
    command: list[str], status: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "occinv", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()  # type: ignore[union-attr]
        process.stdout = None
        _, errors = process.communicate()
    assert (process.returncode, errors) == (status, b"")
