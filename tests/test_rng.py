"""Randomness by position in the global batch."""

import jax
import jax.numpy as jnp
import numpy as np

from occinv.rng import fold, image_rngs, split


def bits(rng: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(rng))


def distinct(*rngs: jax.Array) -> bool:
    rows = np.concatenate([bits(rng) for rng in rngs])
    return len({row.tobytes() for row in rows}) == len(rows)


def test_a_key_depends_on_seed_step_and_position() -> None:
    runs = [jax.random.key(0), jax.random.key(1)]
    assert distinct(*[image_rngs(run, jnp.int32(step), 8) for run in runs for step in (0, 1)])


def test_a_key_does_not_depend_on_the_size_of_the_batch() -> None:
    small, large = (image_rngs(jax.random.key(0), jnp.int32(3), size) for size in (4, 16))
    np.testing.assert_array_equal(bits(large)[:4], bits(small))


def test_split_and_fold_give_each_image_its_own_keys() -> None:
    rng = image_rngs(jax.random.key(0), jnp.int32(0), 8)
    parts = split(rng, 3)
    assert [part.shape for part in parts] == [(8,)] * 3
    assert distinct(rng, *parts)
    assert distinct(rng, *[fold(rng, number) for number in (0, 1, 2)])


def test_split_and_fold_work_image_by_image() -> None:
    rng = image_rngs(jax.random.key(0), jnp.int32(0), 8)
    for whole, part in zip(split(rng, 2), split(rng[2:5], 2), strict=True):
        np.testing.assert_array_equal(bits(whole)[2:5], bits(part))
    np.testing.assert_array_equal(bits(fold(rng, 7))[2:5], bits(fold(rng[2:5], 7)))
