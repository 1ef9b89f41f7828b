"""The decoder, and how it puts visible tokens back at their positions."""

import jax
import jax.numpy as jnp
import numpy as np

from occinv.models.decoder import Decoder, restore


def test_restore_puts_each_visible_token_at_its_position() -> None:
    visible = np.array([[False, True, False, True], [True, True, False, False]])
    tokens = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    missing = np.array([-1, -2, -3], np.float32)
    found = np.asarray(restore(jnp.asarray(tokens), jnp.asarray(visible), jnp.asarray(missing)))
    for b in range(2):
        left = list(tokens[b])
        for n in range(4):
            expected = left.pop(0) if visible[b, n] else missing
            np.testing.assert_array_equal(found[b, n], expected)


def test_restore_of_a_whole_image_changes_nothing() -> None:
    tokens = jnp.arange(12.0).reshape(1, 4, 3)
    np.testing.assert_array_equal(restore(tokens, jnp.ones((1, 4), bool), jnp.zeros(3)), tokens)


def test_the_decoder_predicts_every_patch() -> None:
    decoder = Decoder(grid=(2, 2), patch_values=6, width=8, depth=1, heads=2)
    tokens = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    visible = np.array([[False, True, False, True], [True, True, False, False]])

    def predict(tokens: jax.Array, visible: jax.Array) -> jax.Array:
        params = decoder.init(jax.random.key(0), tokens, visible)
        return decoder.apply(params, tokens, visible)

    compiled = jax.jit(predict)
    found = np.asarray(compiled(tokens, visible))
    assert found.shape == (2, 4, 6) and found.dtype == np.float32
    # The positions of the tokens matter, also for the patches that are missing.
    moved = np.asarray(compiled(tokens, visible[:, ::-1].copy()))
    assert np.abs(found - moved).max() > 1e-3
