"""PSNR by its definition, image by image, and pictures of the reconstructions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from example_models import DECODER, PATCH, SIZE, N, images, make, padded, rows
from PIL import Image

from occinv.evaluators.occlusion import draw_visible
from occinv.evaluators.pictures import save_pictures
from occinv.evaluators.psnr import reconstruction_psnr
from occinv.evaluators.reconstructions import Triple, triples
from occinv.objectives.base import Reconstruction
from occinv.objectives.mae import MAE
from occinv.parallel import make_mesh
from occinv.schema import UserError

MAE_FIELDS = {"name": "mae", **DECODER}


def patches(picture: np.ndarray) -> np.ndarray:
    """[H, W, 3] to [N, P], by slicing."""
    side = SIZE // PATCH
    cut = [
        picture[r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH].ravel()
        for r in range(side)
        for c in range(side)
    ]
    return np.stack(cut)


@pytest.mark.parametrize("normalized", [True, False])
def test_psnr_is_its_definition_image_by_image(normalized: bool) -> None:
    objective, params = make({**MAE_FIELDS, "normalize_target": normalized})
    reconstruct = jax.jit(objective.reconstruct)
    batch = images(12)
    (visible,), _ = draw_visible(jax.random.key(2), batch.index, N, (0.75,))
    shown = reconstruct(params, batch.image / np.float32(255), visible).reconstructed
    whole, removed = [], []
    for row, seen in enumerate(np.asarray(visible)):
        picture = np.asarray(shown[row], np.float64)
        squared = (patches(picture) - patches(batch.image[row] / 255)) ** 2
        assert squared[seen].max() < 1e-12
        whole.append(-10 * np.log10(squared.mean()))
        removed.append(-10 * np.log10(squared[~seen].mean()))
    found = reconstruction_psnr(objective, params, [images(8), padded(images(4, 8), 4)], seed=2)
    assert found.whole == pytest.approx(np.mean(whole), abs=1e-3)
    assert found.removed == pytest.approx(np.mean(removed), abs=1e-3)
    assert found.whole - found.removed == pytest.approx(10 * np.log10(16 / 12), abs=1e-3)
    assert found.images == 12


def test_psnr_does_not_depend_on_order_padding_or_devices() -> None:
    objective, params = make(MAE_FIELDS)
    expected = reconstruction_psnr(objective, params, [images(8), padded(images(4, 8), 4)])
    shuffled = np.random.default_rng(0).permutation(12)
    first, second = (rows(images(12), chosen) for chosen in (shuffled[:5], shuffled[5:]))
    batches = [padded(first, 3), padded(second, 1)]
    found = reconstruction_psnr(objective, params, batches, mesh=make_mesh())
    assert found == pytest.approx(expected, abs=1e-4)
    other = reconstruction_psnr(objective, params, batches, seed=1)
    assert abs(other.whole - expected.whole) > 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oracle(MAE):
    """Reconstructs the image plus a constant."""

    error: float = 0.0

    def reconstruct(self, params, pixels, visible):
        return Reconstruction(pixels, pixels, pixels + self.error)


def test_psnr_of_a_known_error_and_of_none() -> None:
    objective, params = make(MAE_FIELDS)
    oracle = Oracle(setting=objective.setting, error=0.1)
    assert reconstruction_psnr(oracle, params, [images(4)])[:2] == pytest.approx((20, 20), abs=1e-3)
    oracle = Oracle(setting=objective.setting)
    assert reconstruction_psnr(oracle, params, [images(4)])[:2] == pytest.approx((100, 100))


@pytest.mark.parametrize("section", [{"name": "classification"}, {"name": "cmae"}])
def test_an_objective_without_a_decoder_has_no_psnr_and_no_pictures(section: dict) -> None:
    objective, params = make(section)
    for function in (reconstruction_psnr, triples):
        with pytest.raises(UserError, match="does not reconstruct pixels"):
            function(objective, params, images(4))


def test_no_image_is_an_error() -> None:
    with pytest.raises(UserError, match="found no image"):
        reconstruction_psnr(*make(MAE_FIELDS), [rows(padded(images(1), 8), slice(1, None))])


def test_triples_show_what_psnr_measures() -> None:
    objective, params = make(MAE_FIELDS)
    batch = images(5)
    found = triples(objective, params, padded(batch, 3), seed=2)
    visible = np.asarray(draw_visible(jax.random.key(2), batch.index, N, (0.75,))[0][0])
    assert len(found) == 5
    decibels = []
    for row, triple in enumerate(found):
        np.testing.assert_array_equal(triple.original, batch.image[row])
        masked, shown, true = map(patches, (triple.masked, triple.reconstructed, triple.original))
        assert (masked[~visible[row]] == 128).all()
        np.testing.assert_array_equal(masked[visible[row]], true[visible[row]])
        np.testing.assert_array_equal(shown[visible[row]], true[visible[row]])
        decibels.append(-10 * np.log10(((shown / 255 - true / 255) ** 2).mean()))
    expected = reconstruction_psnr(objective, params, [padded(batch, 3)], seed=2).whole
    assert np.mean(decibels) == pytest.approx(expected, abs=0.01)  # pictures are rounded


@pytest.mark.parametrize("scale", [1, 4])
def test_files_hold_the_pictures(tmp_path: Path, scale: int) -> None:
    generator = np.random.default_rng(0)
    made = [Triple(*generator.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)) for _ in range(2)]
    save_pictures(tmp_path / "grid.png", [triple._asdict() for triple in made], scale)
    assert len(list((tmp_path / "grid").iterdir())) == 6
    big = np.asarray(Image.open(tmp_path / "grid" / "1_masked.png"))
    np.testing.assert_array_equal(big, made[1].masked.repeat(scale, 0).repeat(scale, 1))
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    for line in range(2):
        for picture in made[line]:
            assert _contains(grid, picture.repeat(scale, 0).repeat(scale, 1))
    assert (grid[:18] < 128).any(), "the columns have no labels"
    with pytest.raises(UserError, match="0 images at scale=1, expected 1 or more"):
        save_pictures(tmp_path / "none.png", [])


def _contains(grid: np.ndarray, picture: np.ndarray) -> bool:
    height, width = picture.shape[:2]
    corners = np.argwhere((grid == picture[0, 0]).all(2))
    return any(
        (grid[y : y + height, x : x + width] == picture).all()
        for y, x in corners
        if (y + height <= grid.shape[0] and x + width <= grid.shape[1])
    )
