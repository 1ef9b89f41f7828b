"""The order of patches and of the values in them."""

import jax.numpy as jnp
import numpy as np

from occinv.models.patches import patchify, unpatchify


def test_patches_are_in_raster_order_and_flattened_by_row_column_channel() -> None:
    images = np.random.default_rng(0).random((2, 6, 9, 3)).astype(np.float32)
    patches = patchify(jnp.asarray(images), 3)
    assert patches.shape == (2, 6, 27)
    for b in range(2):
        for n in range(6):
            row, column = n // 3 * 3, n % 3 * 3
            values = [
                images[b, row + y, column + x, c]
                for y in range(3)
                for x in range(3)
                for c in range(3)
            ]
            np.testing.assert_array_equal(patches[b, n], values)


def test_unpatchify_is_the_inverse() -> None:
    images = jnp.asarray(np.random.default_rng(0).random((2, 8, 12, 2)), jnp.float32)
    np.testing.assert_array_equal(unpatchify(patchify(images, (4, 2)), (4, 2), (2, 6)), images)
