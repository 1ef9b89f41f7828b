"""Shorten what JAX prints when it ends a process because another process has died.

JAX aborts in C++, with a stack trace, and nothing in Python can prevent or change that. So the
standard error of a process of several goes through this small program, which prints one line
instead. Run as a script, it copies its input to standard error.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

FATAL = re.compile(rb"^F\d{4} .*JAX distributed service detected fatal errors.*absl::Status: (.*)")
# Messages of C++ about the same event.
NOISE = re.compile(rb"^[EW]\d{4} .*(coordination|preemption)")
MORE_NOISE = re.compile(
    rb"^($|[A-Z_]+: |Barrier|# of tasks|The (first|following|tasks)|[\d ,]+$| \[type"
    rb"|This suggests|RPC: |Additional GRPC|:UNKNOWN)"
)


def filter_stderr() -> None:
    """Send the standard error of this process through the filter, until the process ends."""
    command = [sys.executable, "-I", "-S", __file__]
    # A new session: Ctrl-C must not end the filter before this process.
    helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
    assert helper.stdin is not None
    os.dup2(helper.stdin.fileno(), 2)
    helper.stdin.close()
    helper.returncode = 0  # nobody waits for it


def explain(lines: list[bytes]) -> str:
    """Return one line for the lines of a fatal error of JAX's distributed service."""
    text = b" ".join(lines).decode(errors="replace")
    dead = re.search(r"unhealthy[^:]*: *([\d ]+)", text)
    if dead:
        which = f"process {', '.join(dead[1].split())} of this run died or does not answer"
    elif "RegisterTask" in text:
        which = "the processes of this run did not all start in time, or process 0 does not answer"
    else:
        which = "process 0 of this run died or does not answer"
    return f"occinv: {which}. Run the same command on every process to continue.\n"


def main() -> None:
    """Copy lines, and replace a fatal error and all that follows it by one line."""
    fatal: list[bytes] = []
    is_noise = False
    for line in sys.stdin.buffer:
        if fatal:
            fatal.append(line.strip())
        elif found := FATAL.match(line):
            fatal.append(found[1].strip())
        else:
            is_noise = bool(NOISE.match(line) or (is_noise and MORE_NOISE.match(line)))
            if not is_noise:
                os.write(1, line)
    if fatal:
        os.write(1, explain(fatal).encode())


if __name__ == "__main__":
    main()
