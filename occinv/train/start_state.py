"""The whole state of an earlier run as the start of another: `init=state`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib

from occinv.schema import UserError
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.train.step import TrainState, as_items


def start_state(init_from: str, shapes: TrainState, seed: int) -> TrainState:
    """Read the state of an earlier run, and set its counters to those of a new run.

    Moments keep their number of updates, which corrects their bias.

    Args:
      init_from: A workdir, its `checkpoints` folder, or one step in it.
      shapes: The shapes and dtypes of the new run's state.
      seed: The seed of the new run.

    Returns:
      NumPy arrays.

    Raises:
      UserError: The earlier run has another objective, optimizer or shape.
    """
    template = as_items(jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes))
    folder = files.workdir_of(init_from) / files.CHECKPOINTS
    with Checkpoints(folder, read_only=True) as checkpoints:
        try:
            _, items = checkpoints.restore(template, files.step_of(init_from))
        except UserError as error:
            raise UserError(f"init=state: {error} Or use init=params") from None
    state = TrainState(params=items["params"], **items["rest"])
    zero = np.zeros((), np.int32)
    counts: dict[str, Any] = {"step": zero, "nonfinite": zero, "first_nonfinite": zero}
    counts["seed"] = np.uint32(seed)
    optimizer = jax.tree.map(reset_count, state.opt_state, is_leaf=has_moments)
    return dataclasses.replace(state, opt_state=optimizer, **counts)


def has_moments(part: Any) -> bool:
    """Whether a part of an optimizer's state is moments with their number of updates."""
    states = optax.ScaleByAdamState, optax.FactoredState, optax.contrib.MuonState
    return isinstance(part, states)


def reset_count(part: Any) -> Any:
    """Return 0 for a count of steps, by which schedules go, and every other part as it is."""
    is_count = not has_moments(part) and np.issubdtype(part.dtype, np.integer)
    return np.zeros_like(part) if is_count else part
