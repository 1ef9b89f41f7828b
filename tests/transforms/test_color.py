"""Color operations against Pillow's, which torchvision's ColorJitter uses on PIL images."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from occinv.rng import image_rngs
from occinv.transforms.color import ColorJitter, blend, shift_hue, to_gray

SIZE = 12


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Return uint8 [H, W, 3] with every hue, dark and bright, pale and saturated."""
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (SIZE, SIZE, 3))
    colors[0] = rng.integers(0, 256, (SIZE, 1))  # grays
    return colors.astype(np.uint8)


def as_pixels(image: np.ndarray) -> jax.Array:
    return jnp.asarray(image, jnp.float32) / 255


def in_levels(pixels: jax.Array) -> np.ndarray:
    return np.asarray(pixels, np.float64) * 255


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
def test_blend_as_pillow(photo: np.ndarray, name: str, factor: float) -> None:
    theirs = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(photo)).enhance(factor))
    pixels = as_pixels(photo)
    other = {
        "Brightness": jnp.zeros_like(pixels),
        "Contrast": jnp.full_like(pixels, to_gray(pixels).mean()),
        "Color": to_gray(pixels),
    }[name]
    ours = in_levels(blend(pixels, other, jnp.float32(factor)))
    # Pillow rounds the gray and the result to whole levels.
    np.testing.assert_allclose(ours, theirs, atol=2)


def test_gray_as_pillow(photo: np.ndarray) -> None:
    theirs = np.asarray(Image.fromarray(photo).convert("L"))
    for channel in range(3):
        np.testing.assert_allclose(
            in_levels(to_gray(as_pixels(photo)))[..., channel], theirs, atol=1
        )


@pytest.mark.parametrize("turns", [-0.1, 0.1, 1 / 3, 0.5])
def test_hue_as_pillow(photo: np.ndarray, turns: float) -> None:
    hue, saturation, value = Image.fromarray(photo).convert("HSV").split()
    moved = (np.asarray(hue).astype(int) + round(turns * 255)) % 256  # as torchvision moves it
    shifted = Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value))
    theirs = np.asarray(shifted.convert("RGB")).astype(float)
    ours = in_levels(shift_hue(as_pixels(photo), jnp.float32(turns)))
    # Pillow rounds hue to 256 levels, twice. A level of hue is up to 6 levels of a color.
    np.testing.assert_allclose(ours, theirs, atol=13)
    assert np.abs(ours - theirs).mean() < 2
    assert np.abs(ours - photo).mean() > 10  # the hue changed


def test_a_third_of_a_turn_rotates_the_channels(photo: np.ndarray) -> None:
    ours = in_levels(shift_hue(as_pixels(photo), jnp.float32(1 / 3)))
    np.testing.assert_allclose(ours, photo[..., [2, 0, 1]], atol=0.5)


@functools.cache
def jittered(**fields: float) -> tuple[np.ndarray, np.ndarray]:
    """Return 64 copies of one image before and after the jitter."""
    image = np.random.default_rng(1).random((6, 6, 3)).astype(np.float32)
    before = np.repeat(image[None], 64, 0)
    rng = image_rngs(jax.random.key(0), jnp.int32(0), 64)
    compiled = jax.jit(ColorJitter(**fields))
    return before, np.asarray(compiled(rng, jnp.asarray(before)))


def test_jitter_keeps_the_range_and_differs_between_images() -> None:
    before, after = jittered(probability=1.0, gray=0.0)
    assert after.shape == before.shape and after.dtype == np.float32
    assert after.min() >= 0 and after.max() <= 1
    assert len({image.tobytes() for image in after}) == 64


def test_jitter_and_gray_have_their_probabilities() -> None:
    before, after = jittered()  # SimSiam's probabilities
    gray_images = np.ptp(after, axis=3).max((1, 2)) < 1e-6
    touched = np.abs(after - before).max((1, 2, 3)) > 1e-6
    assert gray_images.mean() == pytest.approx(0.2, abs=0.15)
    assert touched[~gray_images].mean() == pytest.approx(0.8, abs=0.15)


def test_hue_does_not_compare_channels_for_equality() -> None:
    """XLA may round one number in two ways, so the result would depend on the devices."""
    jaxpr = jax.make_jaxpr(shift_hue)(jnp.zeros((2, 2, 3)), jnp.float32(0.1))
    assert " eq " not in str(jaxpr) and " ge " in str(jaxpr)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_strength_changes_only_its_own_property(name: str) -> None:
    fields = dict.fromkeys(["brightness", "contrast", "saturation", "hue"], 0.0)
    fields |= {name: 0.1, "probability": 1.0, "gray": 0.0}
    before, after = jittered(**fields)
    red_green_blue = np.asarray([0.299, 0.587, 0.114])
    luma = [(pixels * red_green_blue).sum(-1) for pixels in (before, after)]
    inside = ((after > 1e-3) & (after < 1 - 1e-3)).all(-1)  # pixels that were not clipped
    assert np.abs(after - before).max() > 0.01
    if name == "brightness":
        ratio = np.where(inside, (after / before).mean(-1), np.nan)
        assert np.nanmax(np.nanmax(ratio, (1, 2)) - np.nanmin(ratio, (1, 2))) < 1e-4
        assert 0.9 <= np.nanmin(ratio) < 0.93 and 1.07 < np.nanmax(ratio) <= 1.1 + 1e-6
    elif name == "contrast":
        center = luma[0][0].mean()
        moved = np.where(inside[..., None], (after - center) / (before - center), np.nan)
        far = np.abs(before - center) > 0.1
        spread = np.nanmax(np.where(far, moved, 1), (1, 2, 3))
        assert np.nanmax(np.abs(np.where(far, moved, 1) - 1)) <= 0.1 + 1e-4 and spread.max() > 1.05
    elif name == "saturation":
        np.testing.assert_allclose(luma[1][inside], luma[0][inside], atol=1e-5)
    else:
        np.testing.assert_allclose(after.max(-1), before.max(-1), atol=1e-5)  # HSV's value
        np.testing.assert_allclose(after.min(-1), before.min(-1), atol=1e-5)
