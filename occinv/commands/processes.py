"""Join other processes, print on one of them, and fail together."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from occinv.commands.allocator import keep_freed_memory
from occinv.text import message

if TYPE_CHECKING:
    from rich.console import Console


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the options that `join` reads."""
    # fmt: off
    add = parser.add_argument_group("several processes").add_argument
    add("--distributed", action="store_true",
        help="Join the processes that SLURM, Cloud TPU, Kubernetes or Open MPI started.")
    add("--coordinator", metavar="HOST:PORT",
        help="Connect to process 0 at this address. Needed without a cluster manager. All "
             "processes must start within 45 seconds.")
    add("--num-processes", type=int, metavar="N",
        help="Number of processes; needs --coordinator.")
    add("--process-id", type=int, metavar="I",
        help="Run as process I, from 0 to N - 1, with --coordinator.")
    # fmt: on


def join(options: argparse.Namespace) -> Console:
    """Join the other processes if the options ask for it; set the allocator and the cache.

    Returns:
      A console, which prints in process 0 only. The other processes log warnings only. If the
      reader of the output ends, the run goes on.
    """
    keep_freed_memory()
    import jax

    from occinv import parallel
    from occinv.commands.compilation_cache import use_compilation_cache
    from occinv.commands.stderr_filter import filter_stderr
    from occinv.progress import LastingConsole

    cluster = options.coordinator, options.num_processes, options.process_id
    if options.distributed or cluster != (None, None, None):
        parallel.check_processes(*cluster)
        filter_stderr()
        parallel.join(*cluster)
    use_compilation_cache()
    if jax.process_index() == 0:
        # Paths and errors may contain brackets, which are not markup.
        return LastingConsole(highlight=False, markup=False, emoji=False)
    logging.getLogger("occinv").setLevel(logging.WARNING)
    return LastingConsole(quiet=True)


def fail(status: int, reason: object) -> int:
    """Print the reason and return the status. One of several processes exits at once.

    A regular exit of one process would wait for the others, which wait for it.
    """
    print(f"occinv: {message(str(reason))}", file=sys.stderr, flush=True)
    if is_one_of_several():
        sys.stdout.flush()
        if sys.modules["jax"].process_index() == 0:
            # When process 0 ends, JAX aborts the others. Let them say first why they end.
            time.sleep(2)
        os._exit(status)
    return status


def is_one_of_several() -> bool:
    """Return whether JAX runs in several processes, without importing JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
