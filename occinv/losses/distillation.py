"""The loss that regresses a teacher's features."""

from __future__ import annotations

import jax
import optax


def smooth_l1(first: jax.Array, second: jax.Array, beta: float) -> jax.Array:
    """Return |d| - β/2, and d²/2β where |d| < β, of d = first - second: [...] from [...] and [...].

    It is `torch.nn.functional.smooth_l1_loss` without its mean.
    """
    return optax.huber_loss(first, second, delta=beta) / beta
