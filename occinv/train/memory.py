"""A lower bound of the memory of a run, checked before anything is compiled."""

from __future__ import annotations

import math
import os
from typing import Any

import jax

from occinv import parallel
from occinv.schema import UserError
from occinv.train.step import Assembly, batch_shapes

GIB = 2**30


def check_memory(run: Assembly, shapes: Any) -> None:
    """Raise UserError if a device cannot hold what every step needs at the same time.

    That is the train state, the gradient, the images of its share of the batch, and their pixels in
    float32, of one part of the batch. Activations come on top: `occinv plan` counts them.

    Args:
      run: The run.
      shapes: The shapes and dtypes of its TrainState.
    """
    limit = device_memory(run.mesh.devices.flat[0])
    if limit is None:
        return
    placed = jax.tree.leaves(parallel.of_state(run.mesh, shapes))
    gradient = jax.tree.leaves(shapes.params)
    state = sum(
        math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x, sharding in zip(jax.tree.leaves(shapes), placed, strict=True)
    )
    share = state / sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    state += share * sum(x.size * x.dtype.itemsize for x in gradient)
    batch = batch_shapes(run)
    images = sum(x.size for x in (batch.image, *batch.crops)) / run.mesh.size
    images += 4 * images / run.experiment.train.accumulate
    if state + images > limit:
        train = run.experiment.train
        raise UserError(
            f"the run needs at least {(state + images) / GIB:.3g} GiB on each device, which has "
            f"{limit / GIB:.3g} GiB: {state / GIB:.3g} for the train state and its gradient, "
            f"{images / GIB:.3g} for images. Use a smaller train.batch_size={train.batch_size} or "
            f"model, more devices, a larger train.accumulate={train.accumulate} or "
            f"train.fsdp={train.fsdp}; train.remat=True saves activations"
        )


def device_memory(device: jax.Device) -> int | None:
    """Return the bytes of a device, on CPU its share of the host; None if it does not tell."""
    if device.platform == "cpu":
        try:
            host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            return None
        return host // jax.local_device_count()
    stats = device.memory_stats()
    return stats.get("bytes_limit") if stats else None
