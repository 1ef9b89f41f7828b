"""Patch masking, CutMix and color jitter, each on or off (Table 5), and the jitters of Table 4."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_objectives import DECODER, HEADS, PATCH, SIDE, make, rngs_of

from occinv.data.batch import Batch
from occinv.objectives import forward
from occinv.schema import UserError
from occinv.transforms.view import normalize

IMAGES = 6
PIXELS = jnp.asarray(np.random.default_rng(0).random((IMAGES, 16, 16, 3)), jnp.float32)
RNG = rngs_of(0, IMAGES, seed=0)


def views(name: str, **fields: Any) -> Any:
    return make(name, **fields).views(PIXELS, RNG)


def from_itself_or_partner(pixels: jax.Array) -> np.ndarray:
    """Return bool [B, H, W], where a pixel is its partner's; all others must be the image's own."""
    is_own = np.isclose(pixels, PIXELS, atol=1e-6).all(-1)
    is_partners = np.isclose(pixels, PIXELS[::-1], atol=1e-6).all(-1)
    assert (is_own | is_partners).all()
    return ~is_own


@pytest.mark.parametrize("color", [None, {}])
@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_augmentation_does_not_change_the_masks(cutmix: float, color: Any) -> None:
    plain = views("mae", **DECODER)
    changed = views("mae", cutmix=cutmix, color=color, **DECODER)
    for ours, theirs in zip(changed, plain, strict=True):
        np.testing.assert_array_equal(ours.visible, theirs.visible)
        assert ours.kept == theirs.kept
    is_plain = np.allclose(changed[0].pixels, plain[0].pixels, atol=1e-6)
    assert is_plain == (not cutmix and color is None)


def test_the_target_of_an_augmented_input_is_the_original_image() -> None:
    first, second = views("mae", color={}, cutmix=1.0, **DECODER)
    np.testing.assert_array_equal(second.pixels, PIXELS)
    assert not np.allclose(first.pixels, second.pixels, atol=1e-2)


def test_the_target_of_an_augmented_image_is_augmented() -> None:
    first, second = views("mae", color={}, augmented="image", **DECODER)
    np.testing.assert_array_equal(second.pixels, first.pixels)
    assert not np.allclose(first.pixels, PIXELS, atol=1e-2)


def test_cutmix_pastes_a_box_of_the_partner() -> None:
    pasted = from_itself_or_partner(views("mae", cutmix=1.0, **DECODER)[0].pixels)
    assert pasted.any((1, 2)).sum() >= IMAGES - 2  # a box may be empty
    for box in pasted:
        rows, columns = np.nonzero(box.any(1))[0], np.nonzero(box.any(0))[0]
        assert box.sum() == len(rows) * len(columns)


def test_each_view_of_cmae_has_its_own_box() -> None:
    first, second = views("cmae", mask_ratio=0.0, cutmix=1.0, color=None, **HEADS)
    boxes = [from_itself_or_partner(view.pixels) for view in (first, second)]
    assert (boxes[0] != boxes[1]).any((1, 2)).sum() >= IMAGES - 2


@pytest.mark.parametrize("order", ["before", "after"])
def test_the_contrast_of_cmae_is_that_of_the_whole_image_or_of_its_rest(order: str) -> None:
    """Contrast blends with the mean gray of what the jitter sees."""
    contrast = {"brightness": 0.0, "saturation": 0.0, "hue": 0.0, "probability": 1.0, "gray": 0.0}
    dim = 0.3 + 0.4 * PIXELS  # so that nothing is clipped
    objective = make("cmae", color={"contrast": 0.4, **contrast}, color_order=order, **HEADS)
    for view in objective.views(dim, RNG):
        seen = (
            np.asarray(view.visible).reshape(IMAGES, SIDE, SIDE).repeat(PATCH, 1).repeat(PATCH, 2)
        )
        for before, after, pixels in zip(
            np.asarray(dim), np.asarray(view.pixels), seen, strict=True
        ):
            shown = before if order == "before" else before * pixels[..., None]
            gray = (shown @ [0.299, 0.587, 0.114]).mean()
            factors = (after[pixels] - gray) / (before[pixels] - gray)
            apart = np.abs(before[pixels] - gray) > 0.02
            assert factors[apart].std() < 1e-3
            assert 0.6 <= factors[apart].mean() <= 1.4 and abs(factors[apart].mean() - 1) > 1e-4


def test_without_masking_every_patch_is_seen_and_predicted() -> None:
    """The objective is a plain autoencoder: its loss is the mean squared error of all patches."""
    objective = make("mae", mask_ratio=0.0, normalize_target=False, **DECODER)
    first, second = objective.views(PIXELS, RNG)
    for view in (first, second):
        assert np.asarray(view.visible).all() and view.kept == SIDE**2
    params, state = forward.init(objective, jax.random.key(1))
    image = np.asarray(PIXELS * 255).astype(np.uint8)
    batch = Batch(image, np.zeros(IMAGES, np.int32), np.arange(IMAGES), np.ones(IMAGES, np.float32))
    inputs = params, state, batch, RNG, jnp.int32(0)
    terms = forward.terms_of(objective, *inputs)
    net, _ = forward.bind(objective, *inputs)
    shown = image / np.float32(255)
    predicted = net.decode(net.encode(first.replace(pixels=shown)), first)
    patches = np.asarray(normalize(jnp.asarray(shown)))
    patches = patches.reshape(IMAGES, SIDE, PATCH, SIDE, PATCH, 3)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(IMAGES, SIDE**2, -1)
    expected = np.square(np.asarray(predicted, np.float64) - patches).mean((1, 2))
    np.testing.assert_allclose(terms.loss, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "fields", "t1", "t2"),
    [
        ("mae", {}, "75% removed", "the complement"),
        ("mae", {"mask_ratio": 0.0}, "identity", "identity"),
        ("mae", {"cutmix": 1.0, "color": {}}, "75% removed, CutMix, color", "the complement"),
        ("cmae", {}, "75% removed, color", "the complement, color"),
        ("cmae", {"t2": "identity"}, "75% removed, color", "color"),
        ("cmae", {"mask_ratio": 0.0, "cutmix": 1.0}, "CutMix, color", "CutMix, color"),
        ("rmae", {"t2": "identity", "color": {}}, "75% removed, color", "identity"),
    ],
)
def test_the_axes_describe_the_transformations(
    name: str, fields: dict[str, Any], t1: str, t2: str
) -> None:
    assert make(name, **fields).axes[:2] == (t1, t2)


def test_rmae_needs_masking() -> None:
    with pytest.raises(UserError, match=r"mask ratio 0(\.0)?, expected"):
        make("rmae", mask_ratio=0.0)


def test_evaluation_does_not_augment_images() -> None:
    objective = make("mae", cutmix=1.0, color={}, **DECODER)
    evaluated = forward.for_evaluation(objective)
    assert (objective.couples, evaluated.couples) == ("features", "nothing")
    for view in evaluated.views(PIXELS, RNG):
        np.testing.assert_array_equal(view.pixels, PIXELS)
