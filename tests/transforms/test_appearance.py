"""Blur and solarize against Pillow, and their probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from occinv.rng import image_rngs
from occinv.transforms.color import Appearance, ColorJitter, gaussian_blur, solarize

NOTHING = ColorJitter(probability=0.0, gray=0.0)


def photograph() -> np.ndarray:
    from skimage import data

    return np.array(Image.fromarray(data.astronaut()).resize((64, 64)))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_blur_as_pillow(sigma: float) -> None:
    image = photograph()
    theirs = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
    ours = gaussian_blur(jnp.asarray(image, jnp.float32)[None] / 255, jnp.array([sigma]))[0]
    error = np.abs(np.asarray(ours) * 255 - theirs)
    unblurred = np.abs(image.astype(float) - theirs)
    # Pillow approximates the Gaussian by three box blurs of whole numbers.
    assert error.mean() < 1.0 and error.mean() < 0.15 * unblurred.mean()


def test_blur_keeps_a_plain_image_and_commutes_with_transposing_and_flipping() -> None:
    plain = jnp.full((1, 16, 16, 3), 0.3)
    np.testing.assert_allclose(gaussian_blur(plain, jnp.array([2.0])), plain, rtol=1e-5)
    image = jnp.asarray(photograph(), jnp.float32)[None, :48] / 255  # not square
    blurred = gaussian_blur(image, jnp.array([1.5]))
    turned = gaussian_blur(image.swapaxes(1, 2), jnp.array([1.5])).swapaxes(1, 2)
    np.testing.assert_allclose(blurred, turned, atol=1e-5)
    np.testing.assert_allclose(
        gaussian_blur(image[:, ::-1], jnp.array([1.5])), blurred[:, ::-1], atol=1e-5
    )


def test_each_image_has_its_own_sigma() -> None:
    pair = jnp.stack([jnp.asarray(photograph(), jnp.float32) / 255] * 2)
    both = gaussian_blur(pair, jnp.array([0.3, 2.0]))
    np.testing.assert_allclose(both[:1], gaussian_blur(pair[:1], jnp.array([0.3])), atol=1e-6)
    assert float(jnp.abs(both[0] - both[1]).max()) > 0.1


def test_solarize_as_pillow() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    theirs = np.asarray(ImageOps.solarize(Image.fromarray(values)))
    ours = solarize(jnp.asarray(values, jnp.float32) / 255)
    np.testing.assert_allclose(ours * 255, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["blur", "solarize"])
def test_probabilities(kind: str) -> None:
    images = jnp.broadcast_to(
        jnp.asarray(photograph()[::4, ::4], jnp.float32) / 255, (400, 16, 16, 3)
    )
    rng = image_rngs(jax.random.key(0), jnp.int32(0), 400)

    def changed(probability: float) -> np.ndarray:
        appearance = Appearance(color=NOTHING, **{kind: probability})
        return np.asarray(jnp.abs(appearance(rng, images) - images).max((1, 2, 3)) > 1e-6)

    assert not changed(0.0).any()
    assert changed(1.0).mean() > 0.85  # a blur of 0.1 pixels changes nothing
    assert changed(0.2).mean() == pytest.approx(0.2, abs=0.06)
