"""What JAX prints when a peer dies becomes one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from occinv.commands import stderr_filter

FATAL = (
    "F1126 11:20:27.386820   15413 client.h:80] Terminating process because the JAX distributed "
    "service detected fatal errors. See the logs. absl::Status: "
)
STACK = "*** Check failure stack trace: ***\n    @     0x7f  absl::Flush()\n    @  (unknown)\n"
NOISE = (
    "E1126 11:28:13.843463   16856 coordination_service.cc:1520] Shutdown barrier has failed:\n"
    "DEADLINE_EXCEEDED: Barrier timed out.\n# of tasks that reached the barrier: 1/2.\n0\n\n"
)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (
            "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\nThe "
            "tasks have crashed.\n\nRPC: /CoordinationService/PollForError\n",
            "process 1 of this run died or does not answer",
        ),
        (
            "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /CoordinationService/RegisterTask\n",
            "the processes of this run did not all start in time",
        ),
        ("UNAVAILABLE: Failed to send RPC.\nSocket closed\n", "process 0 of this run died"),
    ],
)
def test_a_fatal_error_becomes_one_line(status: str, said: str) -> None:
    before = "occinv: a line\n42\n"
    command = [sys.executable, "-I", "-S", stderr_filter.__file__]
    given = before + NOISE + FATAL + status + STACK
    shown = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60).stdout
    assert shown.startswith(f"{before}occinv: {said}")
    assert shown.count("\n") == 3


def test_everything_else_passes() -> None:
    text = "Traceback (most recent call last):\n  File x\n\nValueError: 3\nno newline"
    command = [sys.executable, "-I", "-S", stderr_filter.__file__]
    shown = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60).stdout
    assert shown == text
