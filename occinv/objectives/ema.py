"""The EMA target of siamese objectives: a slow copy of some networks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp


def ema(old: Any, new: Any, momentum: jax.Array | float) -> Any:
    """Return momentum · old + (1 - momentum) · new, leaf by leaf of two equal trees."""
    return jax.tree.map(lambda x, y: momentum * x + (1 - momentum) * y, old, new)


@dataclasses.dataclass(frozen=True)
class EMA:
    """target ← m · target + (1 - m) · online, before each forward pass.

    Attributes:
      networks: The names of the networks that are copied.
      momentum: m at the first step.
      schedule: How m changes: `constant`, or to 1 at the end along a half `cosine` or a `linear`
        ramp.
      lag: 1 for methods that update after each step (DINO, I-JEPA): the update before step s then
        has the momentum of step s - 1.
    """

    networks: tuple[str, ...]
    momentum: float
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    lag: int = 0

    def copy(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of `networks`, where the target starts."""
        return {name: params[name] for name in self.networks}

    def update(
        self,
        target: dict[str, Any],
        params: dict[str, Any],
        step: jax.Array,
        total_steps: int,
        power: float = 1.0,
    ) -> dict[str, Any]:
        """Return the target of step number `step`, int32 [], of a run of `total_steps`.

        The momentum is m ** `power`. `power` is the batch size over the one that m is given for
        (Busbridge et al. 2023, "How to scale your EMA", arXiv:2307.13813, Definition 1.2).
        """
        momentum: Any = self.momentum
        if self.schedule != "constant":
            done = jnp.maximum(step - self.lag, 0).astype(jnp.float32) / total_steps
            if self.schedule == "cosine":
                momentum = 1 - (1 - momentum) * (jnp.cos(math.pi * done) + 1) / 2
            else:
                momentum = momentum + (1 - momentum) * done
        if power != 1:
            momentum = momentum**power
        return ema(target, self.copy(params), momentum)
