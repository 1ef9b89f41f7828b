"""Cross-entropy with label smoothing, and accuracy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Return the cross-entropy with label smoothing, as timm's LabelSmoothingCrossEntropy: [...].

    Args:
      logits: float [..., C].
      labels: int [...].
      smoothing: The probability that is spread evenly over all C classes.
    """
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def hits(logits: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """Return `top1` and `top5`, 1.0 where `label` [B] is among the best of logits [B, C]: [B].

    A tie is a miss: a model that prefers no class has an accuracy of 0, not of 1.
    """
    own = jnp.take_along_axis(logits, label[:, None], axis=1)
    better = (~(logits < own)).sum(1) - 1  # without itself; NaN counts as wrong
    return {f"top{best}": (better < best).astype(jnp.float32) for best in (1, 5)}
