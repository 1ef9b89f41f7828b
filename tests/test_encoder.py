"""The encoder as an object: features, errors, and loading from workdirs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from example_models import (
    DECODER,
    DEPTH,
    PATCH,
    SIZE,
    WIDTH,
    N,
    encode,
    encoder_of,
    images,
    make,
    save_run,
)

import occinv
from occinv.encoder import LoadedEncoder
from occinv.schema import UserError

MAE = {"name": "mae", **DECODER}
CMAE = {"name": "cmae", "head_hidden": 8, "head_out": 8}


@pytest.fixture(scope="module", params=[MAE, CMAE], ids=["drops", "mask_token"])
def encoder(request: pytest.FixtureRequest) -> LoadedEncoder:
    return LoadedEncoder(*encoder_of(request.param))


def test_the_sizes_of_an_encoder(encoder: LoadedEncoder) -> None:
    sizes = (
        encoder.image_size,
        encoder.patch_size,
        encoder.num_patches,
        encoder.width,
        encoder.depth,
    )
    assert sizes == (SIZE, PATCH, N, WIDTH, DEPTH)


@pytest.mark.parametrize("section", [MAE, {"name": "classification"}], ids=lambda s: s["name"])
def test_features_of_whole_images_are_those_of_the_module(section: dict) -> None:
    encoder = LoadedEncoder(*encoder_of(section))
    image = images(2).image
    expected = encode(encoder.encoder, encoder.params, image / np.float32(255))
    features, blocks = encoder.features(image), encoder.blocks(image)
    assert features.dtype == blocks.dtype == np.float32
    assert features.shape == (2, 1 + N, WIDTH)
    assert blocks.shape == (DEPTH, 2, 1 + N, WIDTH)
    np.testing.assert_allclose(features, expected.tokens, atol=1e-5)
    np.testing.assert_allclose(blocks, expected.blocks, atol=1e-5)


def test_floats_and_bytes_are_the_same_images(encoder: LoadedEncoder) -> None:
    image = images(2).image
    expected = encoder.features(image)
    for dtype in (np.float32, np.float64):
        np.testing.assert_allclose(
            encoder.features((image / 255).astype(dtype)), expected, atol=1e-5
        )


def test_each_image_has_its_own_visible_patches(encoder: LoadedEncoder) -> None:
    """Features are those of the image alone, for any number of patches, and zeros elsewhere."""
    batch = images(4)
    order = np.argsort(np.random.default_rng(0).random((4, N)), axis=1)
    visible = order < np.array([4, 8, 8, 4])[:, None]
    features, blocks = encoder.features(batch.image, visible), encoder.blocks(batch.image, visible)
    for row, seen in enumerate(visible):
        pixels = batch.image[row : row + 1] / np.float32(255)
        alone = encode(encoder.encoder, encoder.params, pixels, seen[None], int(seen.sum()))
        rows = np.flatnonzero(np.insert(seen, 0, True))
        tokens, levels = np.asarray(alone.tokens)[0], np.asarray(alone.blocks)[:, 0]
        if encoder.encoder.mask_token:
            tokens, levels = tokens[rows], levels[:, rows]
        np.testing.assert_allclose(features[row, rows], tokens, atol=1e-5)
        np.testing.assert_allclose(blocks[:, row, rows], levels, atol=1e-5)
        hidden = np.flatnonzero(~np.insert(seen, 0, True))
        assert not features[row, hidden].any()
        assert not blocks[:, row, hidden].any()


def test_pixels_of_hidden_patches_have_no_influence(encoder: LoadedEncoder) -> None:
    image = images(2).image
    visible = np.zeros((2, N), bool)
    visible[:, N // 2 :] = True  # the lower half
    changed = image.copy()
    changed[:, : SIZE // 2] = 0
    expected = encoder.features(image, visible)
    np.testing.assert_array_equal(encoder.features(changed, visible), expected)
    assert abs(encoder.features(changed) - encoder.features(image)).max() > 1e-3


@pytest.mark.parametrize(
    ("image", "visible", "message"),
    [
        (np.zeros((2, 16, 16, 3), np.uint8), None, r"\[2, 16, 16, 3\], expected \[B, 32, 32, 3\]"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), None, "shape"),
        (np.zeros((2, SIZE, SIZE, 3), np.int64), None, "dtype int64, expected uint8"),
        (np.full((2, SIZE, SIZE, 3), 255.0), None, "from 255.0 to 255.0"),
        (np.full((2, SIZE, SIZE, 3), np.nan), None, "from nan"),
        (np.zeros((2, SIZE, SIZE, 3)), np.ones((2, N), int), r"int64\[2, 16\], expected bool"),
        (np.zeros((2, SIZE, SIZE, 3)), np.ones((1, N), bool), r"expected bool\[2, 16\]"),
        (np.zeros((2, SIZE, SIZE, 3)), np.eye(2, N, 1) > 2, "image 0 without a patch"),
    ],
)
def test_impossible_images_and_patches_are_errors(image, visible, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadedEncoder(*encoder_of(MAE)).features(image, visible)


def test_load_encoder_reads_a_workdir_its_checkpoints_or_one_of_them(tmp_path: Path) -> None:
    save_run(tmp_path, CMAE, steps=(3, 7))
    image = images(2).image

    def expected(step: int) -> np.ndarray:
        objective, params = make(CMAE, step)
        return LoadedEncoder(objective.networks.encoder, params["encoder"]).features(image)

    assert abs(expected(3) - expected(7)).max() > 1e-3
    for path, step in ((tmp_path, 7), (str(tmp_path / "checkpoints"), 7)):
        np.testing.assert_array_equal(occinv.load_encoder(path).features(image), expected(step))
    one = occinv.load_encoder(tmp_path / "checkpoints" / "3")
    np.testing.assert_array_equal(one.features(image), expected(3))
    np.testing.assert_array_equal(
        occinv.load_encoder(tmp_path, step=3).features(image), expected(3)
    )
    with pytest.raises(UserError, match="is not the workdir"):
        occinv.load_encoder(tmp_path / "nothing")


def test_importing_occinv_loads_no_jax() -> None:
    program = (
        "import sys, occinv\n"
        "assert 'load_encoder' in occinv.__all__\n"
        "heavy = {'jax', 'flax', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    with pytest.raises(AttributeError, match="no attribute 'load_encoders'"):
        occinv.load_encoders  # noqa: B018
