"""The losses of SimMIM and MaskFeat against loops in float64, written from the papers.

The loops get what the papers take as given: tokens of the encoder, and the views that were drawn.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from numpy_hog import hog_of_cell
from small_objectives import COUNT, IMAGES, PATCH, SIDE, Found, make, make_batch, run, start

from occinv.objectives.base import Setting
from occinv.objectives.maskfeat import MaskFeat
from occinv.schema import UserError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def corner(patch: int) -> tuple[int, int]:
    """Return the first row and column of a patch."""
    return patch // SIDE * PATCH, patch % SIDE * PATCH


def predictions(found: Found, head: str, b: int) -> dict[int, np.ndarray]:
    """Return the prediction for each removed patch of image b."""
    w = {name: value.astype(float) for name, value in found.params[head].items()}
    tokens = found.given[b, 1:].astype(float)
    return {n: tokens[n] @ w["kernel"] + w["bias"] for n in np.flatnonzero(~found.visible[0][b])}


def tokens(net: Any, views: Any, ctx: Any) -> Any:
    return net.encode(views[0]).tokens


@pytest.mark.parametrize("unit", [1, 2])
def test_simmim(unit: int) -> None:
    objective = make("simmim", mask_ratio=0.6, mask_unit=unit)
    found = run(objective, tokens)
    first, second = found.visible
    squares = COUNT // unit**2
    assert (first.sum(1) == squares * 2 // 5 * unit**2).all()
    np.testing.assert_array_equal(first, ~second)
    for b in range(IMAGES):
        differences = []
        for n, predicted in predictions(found, "decoder", b).items():
            top, left = corner(n)
            values = iter(predicted)
            for y in range(top, top + PATCH):
                for x in range(left, left + PATCH):
                    for c in range(3):
                        pixel = (float(found.image[b, y, x, c]) / 255 - MEAN[c]) / DEVIATION[c]
                        differences.append(abs(next(values) - pixel))
        assert len(differences) == 3 * PATCH**2 * (COUNT - first[b].sum())
        assert found.loss[b] == pytest.approx(np.mean(differences), rel=1e-5)


@pytest.mark.parametrize("cell", [2, 8])
def test_maskfeat(cell: int) -> None:
    """Cells are 2 × 2 in a patch, or as large as the patch, which is smaller than 8 pixels."""
    objective = make("maskfeat", mask_ratio=0.375, min_rectangle=2, cell_size=cell)
    found = run(objective, tokens)
    first, second = found.visible
    assert (first.sum(1) == 10).all() and second.all()
    size = min(cell, PATCH)
    for b in range(IMAGES):
        squares = []
        for n, predicted in predictions(found, "head", b).items():
            (top, left), target = corner(n), []
            for y in range(top, top + PATCH, size):
                for x in range(left, left + PATCH, size):
                    for c in range(3):
                        target += list(hog_of_cell(found.image[b, :, :, c], y, x, size))
            squares += [(p - t) ** 2 for p, t in zip(predicted, target, strict=True)]
        assert found.loss[b] == pytest.approx(np.mean(squares), rel=1e-4)


def test_the_target_of_a_patch_of_16_pixels_has_108_values() -> None:
    setting = make("maskfeat", min_rectangle=2).setting
    encoder = setting.encoder.clone(image_size=64, patch_size=16)
    objective = MaskFeat(setting=Setting(encoder, 3, 1))
    pixels = jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)
    assert jax.eval_shape(objective.target, pixels).shape == (2, 16, 108)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "simmim",
            {"mask_unit": 3},
            r"mask_unit=3 does not divide .* 4² patches.* one of 1, 2, 4$",
        ),
        (
            "simmim",
            {"mask_unit": 8},
            r"mask_unit=8 does not divide .* 4² patches.* one of 1, 2, 4$",
        ),
        ("simmim", {"mask_ratio": 0.8}, "leaves none of 4 patches visible"),
        ("maskfeat", {"cell_size": 3}, r"cell_size=3 does not divide .*size=4, .* one of 1, 2, 4$"),
        ("maskfeat", {"mask_ratio": 1.0}, "mask_ratio=1.0, expected a number < 1"),
    ],
)
def test_impossible_fields_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **fields)


def test_simmim_reconstructs_the_removed_patches_from_the_visible_ones() -> None:
    objective = make("simmim")
    params, _ = start(objective)
    pixels = np.float32(make_batch().image / 255)
    visible = np.random.default_rng(0).random((IMAGES, COUNT)) < 0.4
    changed = pixels.copy()
    for b, n in np.argwhere(~visible):
        top, left = corner(n)
        changed[b, top : top + PATCH, left : left + PATCH] = 0.5
    reconstruct = jax.jit(objective.reconstruct)
    shown, other = (reconstruct(params, image, visible) for image in (pixels, changed))
    np.testing.assert_allclose(shown.reconstructed, other.reconstructed, atol=1e-6)
    np.testing.assert_array_equal(shown.masked, changed)
    net = objective.networks.bind({"params": params})
    decoded = np.asarray(net.decoder(net.encoder(pixels, visible).tokens[:, 1:]))
    for b, n in np.ndindex(visible.shape):
        top, left = corner(n)
        square = slice(top, top + PATCH), slice(left, left + PATCH)
        patch = decoded[b, n].reshape(PATCH, PATCH, 3) * DEVIATION + MEAN
        expected = pixels[b][square] if visible[b, n] else patch.clip(0, 1)
        np.testing.assert_allclose(shown.reconstructed[b][square], expected, atol=1e-5)
