"""Soft assignments of images to prototypes: Sinkhorn-Knopp, and mean-entropy maximization.

Images count by their share of the weight of the batch. Padding has share 0 and does not count.
"""

from __future__ import annotations

import math

import jax


def sinkhorn(logits: jax.Array, share: jax.Array, iterations: int = 3) -> jax.Array:
    """Return log-probabilities of prototypes that are about equally frequent in the batch.

    Each iteration scales every prototype to the same total, then the probabilities of every image
    to a sum of 1 (Sinkhorn-Knopp; `distributed_sinkhorn` of the official MSN's losses.py).

    Args:
      logits: Logarithms of assignments, up to a constant for each image, float32 [B, K].
      share: float32 [B], the weights of the images, with sum 1.
      iterations: Their number.

    Returns:
      float32 [B, K].
    """
    for _ in range(iterations):
        totals = jax.nn.logsumexp(logits, axis=0, b=share[:, None], keepdims=True)
        logits = jax.nn.log_softmax(logits - totals)
    return logits


def mean_entropy_gap(probabilities: jax.Array, share: jax.Array) -> jax.Array:
    """Return log K minus the entropy of the mean probabilities of K prototypes: float32 [].

    It is 0 if all prototypes are equally frequent, and log K if only one occurs. Minimizing it
    maximizes the mean entropy (me-max: Assran et al. 2021, arXiv:2104.13963).

    Args:
      probabilities: float32 [B, V, K], for V views of each image.
      share: float32 [B], the weights of the images, with sum 1.
    """
    mean = (share[:, None] * probabilities.mean(1)).sum(0)
    return math.log(len(mean)) - jax.scipy.special.entr(mean).sum()
