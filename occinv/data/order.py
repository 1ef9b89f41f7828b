"""The order of samples: an endless stream that depends on the seed alone."""

from __future__ import annotations

import functools

import numpy as np


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, num_examples: int, epoch: int) -> np.ndarray:
    # Sort raw bits instead of calling Generator.permutation: NumPy guarantees the bits of Philox
    # and SeedSequence for ever, but the algorithms of Generator may change between releases, and a
    # run resumed after an upgrade must see the same order.
    bits = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_examples)
    order = np.argsort(bits, kind="stable")
    order.setflags(write=False)
    return order


def sample_indices(seed: int, num_examples: int, first: int, count: int) -> np.ndarray:
    """Return the images of the samples `first` to `first + count - 1` of the stream.

    Sample i belongs to epoch i // num_examples. Every epoch is a permutation of all images that
    depends on (seed, epoch) alone. So every image comes once per epoch even if the batch size does
    not divide the epoch, a batch may span epochs, and sample 10**9 costs as much as sample 0.

    Returns:
      int64 [count], 0 <= index < num_examples.
    """
    if min(seed, first, count) < 0 or num_examples < 1:
        raise ValueError(
            "expected seed, first and count >= 0 and num_examples >= 1, got "
            f"{seed}, {first}, {count} and {num_examples}"
        )
    parts = [np.empty(0, np.int64)]
    last = first + count
    while first < last:
        epoch, position = divmod(first, num_examples)
        part = _permutation(seed, num_examples, epoch)[position : position + last - first]
        parts.append(part)
        first += len(part)
    return np.concatenate(parts)
