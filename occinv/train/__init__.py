"""Training: the state, the optimizer, the one step, checkpoints, and loop.py, to be read first.

The package is also the function `occinv.train`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from occinv.train.loop import Outcome, Watch


def train(
    config: str | Path | Mapping[str, Any],
    workdir: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Train a config in `workdir`, or continue the run that is already there.

    Args:
      config: A config by name (`mae`, `mae:smoke`), a file (`my.py:smoke`), or the fields
        themselves, as a dict or `ml_collections.ConfigDict`.
      workdir: The folder of the run, perhaps `gs://BUCKET/FOLDER`.
      overrides: Values of fields by their path, such as `{"train.duration.epochs": 3}`.
      watch: Called after every step with the steps taken, all steps, and the metrics if they were
        just logged, else None.

    Returns:
      The steps taken, the length of the run, the last evaluation, and the signal that stopped it.

    Raises:
      UserError: The config or the data is wrong; nothing is written.
      NonFinite: The loss or its gradient is not finite (`train.max_nonfinite`).
      RunFailed: An image cannot be read, or an evaluator or the disk fails, after the start.

    Example:
      >>> import occinv
      >>> outcome = occinv.train(
      ...     "mae:smoke",
      ...     "runs/mae",
      ...     overrides={
      ...         "encoder.width": 16,
      ...         "encoder.heads": 2,
      ...         "encoder.depth": 1,
      ...         "train.batch_size": 8,
      ...         "train.duration.steps": 2,
      ...     },
      ... )
      >>> outcome.step, outcome.steps
      (2, 2)
    """
    from occinv.config import make_config
    from occinv.paths import as_path
    from occinv.schema import resolve
    from occinv.train.loop import train

    experiment = resolve(make_config(config, overrides or {}))
    return train(experiment, as_path(workdir), watch)


class _Callable(ModuleType):
    __call__ = staticmethod(train)


# Python sets the attribute `train` of `occinv` to this package, so it must be the function, too.
sys.modules[__name__].__class__ = _Callable
__signature__ = inspect.signature(train)
