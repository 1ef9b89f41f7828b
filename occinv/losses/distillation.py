"""Losses against a teacher's outputs."""

from __future__ import annotations

import jax
import optax


def smooth_l1(first: jax.Array, second: jax.Array, beta: float) -> jax.Array:
    """Return |d| - β/2, and d²/2β where |d| < β, of d = first - second: [...] from [...] and [...].

    It is `torch.nn.functional.smooth_l1_loss` without its mean.
    """
    return optax.huber_loss(first, second, delta=beta) / beta


def soft_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Return -Σ p · log softmax(logits): [...] from [..., C] and [..., C]."""
    return -(probabilities * jax.nn.log_softmax(logits, axis=-1)).sum(-1)
