"""Worker processes that make batches, for hosts where the threads of one process are too slow.

The threads of a process share Python's lock (the GIL), and pass it on many times for each image.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing import resource_tracker
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from occinv.schema import UserError
from occinv.text import one_line

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # the main process handles them


def made_by_workers(
    make: Callable[[int], Any], first: int, last: int, count: int
) -> Generator[Any]:
    """Yield make(first) to make(last - 1) in order, made ahead by `count` processes.

    Each process has a copy of `make`, and makes at most four results ahead. What a process logs is
    logged here.

    Args:
      make: Returns a pytree of arrays and other leaves; it can be pickled.
      first: The first number.
      last: The number after the last.
      count: The maximum number of processes.

    Raises:
      UserError: `make` cannot be pickled, or a process was killed.
    """
    try:
        pickle.dumps(make)
    except Exception as error:  # the pickling of a user's class may raise anything
        raise UserError(
            f"data.num_workers={count} sends the images' source to other processes, and it cannot "
            f"be pickled: {one_line(str(error))}. Use data.num_workers=0."
        ) from error
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain asks for its own
    on_demand = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    numbers = grain.MapDataset.range(first, last).map(_Logged(make)).to_iter_dataset(on_demand)
    options = grain.MultiprocessingOptions(
        num_workers=min(count, last - first), per_worker_buffer_size=1
    )
    resource_tracker.ensure_running()  # starting it unblocks signals
    results: Any = iter(numbers.mp_prefetch(options, worker_init_fn=_end_with_parent))
    try:
        for number in range(first, last):
            try:
                # The first result starts the processes, which inherit the blocked signals.
                with _blocked(SIGNALS if number == first else set()):
                    result, records = next(results)
            except RuntimeError as error:
                if "terminated unexpectedly" not in str(error):  # Grain's words
                    raise
                raise UserError(
                    f"a process of data.num_workers={count} ended: {one_line(str(error))} If "
                    "memory or /dev/shm ran out, use fewer processes or a smaller batch."
                ) from error
            for record in records:
                logging.getLogger(record.name).handle(record)
            # Grain's arrays are in shared memory, which ends with them.
            yield jax.tree.map(lambda x: np.array(x) if isinstance(x, np.ndarray) else x, result)
    finally:
        results.close()
        result = results = None
        gc.collect()  # frees results that nobody took
        time.sleep(0.2)  # a thread of grain frees them, which an exit would cut off


@contextlib.contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    """Deliver these signals to this thread, and to processes it starts, only afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Logged:
    """Calls a function in a worker, and returns the log records of each call with its result."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make
        self.records: queue.SimpleQueue[logging.LogRecord] | None = None

    def __call__(self, number: int) -> tuple[Any, list[logging.LogRecord]]:
        if self.records is None:
            self.records = queue.SimpleQueue()
            logging.getLogger().addHandler(logging.handlers.QueueHandler(self.records))
        try:
            result = self.make(number)
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # it would not arrive, and the main process would wait forever
                raise RuntimeError(f"{type(error).__name__}: {error}") from None
            raise
        return result, [self.records.get() for _ in range(self.records.qsize())]


def _end_with_parent(_: int, __: int) -> None:
    """End this process when the main process ends, also if it was killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
