"""The pixels and visible patches of a view."""

import jax.numpy as jnp
import numpy as np

from occinv.transforms.view import denormalize, normalize, unit_range, whole


def test_unit_range() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    pixels = unit_range(jnp.asarray(image))
    assert pixels.dtype == jnp.float32
    np.testing.assert_allclose(pixels[0, :, :, 0].ravel(), np.arange(256) / 255, rtol=1e-6)


def test_normalize_by_imagenet() -> None:
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    np.testing.assert_allclose(normalize(jnp.array(mean)), 0, atol=1e-7)
    pixels = jnp.array(mean) + 2 * jnp.array(deviation)
    np.testing.assert_allclose(normalize(pixels), 2, rtol=1e-6)
    np.testing.assert_allclose(denormalize(normalize(pixels)), pixels, rtol=1e-6)


def test_whole_shows_every_patch() -> None:
    view = whole(jnp.zeros((2, 8, 8, 3)), 4)
    assert view.kept == 4 and view.visible.shape == (2, 4) and bool(view.visible.all())
