"""A run is asked to stop, and stops where it chooses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from occinv.train.signals import EXIT_STATUS, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_held_until_asked_for(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested is number
    assert signal.getsignal(number) is before
    assert stop.requested is number


def test_the_second_interrupt_does_not_wait():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested is signal.SIGINT


def test_the_first_signal_counts_and_terminations_never_raise():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested is signal.SIGTERM


def test_handlers_are_put_back_after_an_exception_and_can_nest():
    before = {number: signal.getsignal(number) for number in EXIT_STATUS}
    with pytest.raises(RuntimeError), StopRequest() as outer:
        with StopRequest() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner.requested is signal.SIGTERM
        assert outer.requested is None
        os.kill(os.getpid(), signal.SIGINT)
        assert outer.requested is signal.SIGINT
        raise RuntimeError
    assert {number: signal.getsignal(number) for number in EXIT_STATUS} == before


def test_a_signal_that_is_ignored_stays_ignored():
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


TERMINAL = """
import os, pty, sys, time
child, terminal = pty.fork()
if child == 0:
    from occinv.train.signals import StopRequest
    with StopRequest() as stop:
        print("ready", flush=True)
        while stop.requested is None:
            time.sleep(0.01)  # signal.pause() would miss a signal that comes just before it
    print("saved", flush=True)  # the terminal is closed
    os._exit(7)
assert b"ready" in os.read(terminal, 100)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_closed_terminal_does_not_stop_the_saving():
    command = [sys.executable, "-c", TERMINAL]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "7\n"


def test_in_another_thread_nothing_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


PROGRAM = """
import sys, time
from occinv.train.signals import EXIT_STATUS, StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
print("saved", flush=True)
sys.exit(EXIT_STATUS[stop.requested])
"""


@pytest.mark.parametrize(
    "number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_the_exit_status_is_the_one_of_shells(number, status):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == status == EXIT_STATUS[number]
