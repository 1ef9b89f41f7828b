"""The EMA target of siamese objectives: a slow copy of some of the parameters."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def moved(target: Any, online: Any, momentum: jax.Array | float) -> Any:
    """momentum · target + (1 - momentum) · online, leaf by leaf of two equal trees."""
    return jax.tree.map(lambda old, new: momentum * old + (1 - momentum) * new, target, online)


def cosine_momentum(start: float, step: jax.Array, total_steps: int) -> jax.Array:
    """A momentum that grows from `start` at step 0 to 1 at the end along half a cosine: []."""
    done = step.astype(jnp.float32) / total_steps
    return 1 - (1 - start) * (jnp.cos(math.pi * done) + 1) / 2
