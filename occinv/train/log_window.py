"""The metrics of the steps since the last log, whose means are logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from occinv import parallel

QUEUE = 2  # batches that may wait on the device


class LogWindow:
    """The metrics of the steps since the last log.

    A checkpoint keeps them, so that the first means after a restart cover the same steps as those
    of an uninterrupted run, bit for bit.

    Args:
      saved: What `to_json` returned at the checkpoint, empty at the start of a run.
    """

    def __init__(self, saved: Mapping[str, Sequence[str]] | None = None) -> None:
        values = {name: [float.fromhex(x) for x in xs] for name, xs in (saved or {}).items()}
        rows = zip(*values.values(), strict=True)
        self._steps: list[dict[str, Any]] = [dict(zip(values, row, strict=True)) for row in rows]

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Add the metrics of a step. Waits for the device if more than two steps queue there."""
        self._steps.append(metrics)
        if len(self._steps) > QUEUE:
            jax.block_until_ready(self._steps[-QUEUE - 1])

    def means(self) -> dict[str, float]:
        """Return the mean of every metric, in float64."""
        steps = self._fetch()
        return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}

    def to_json(self) -> dict[str, list[str]]:
        """Return every value as a hexadecimal text: exact, and JSON has no NaN."""
        steps = self._fetch()
        return {name: [step[name].hex() for step in steps] for name in steps[0]} if steps else {}

    def _fetch(self) -> list[dict[str, float]]:
        self._steps = [
            {n: x if isinstance(x, float) else float(parallel.fetch(x)) for n, x in step.items()}
            for step in self._steps
        ]
        return self._steps
