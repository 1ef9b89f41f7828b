"""The encoder as an object: features, errors, and loading from workdirs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from PIL import ExifTags, Image

import occinv
from occinv.data.loader import EvalLoader, LoaderSpec
from occinv.data.open_source import open_source
from occinv.encoder import LoadedEncoder, _encode
from occinv.models.class_attention import class_attention
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
    features, blocks = encoder.features(image), encoder.intermediate(image)
    assert features.dtype == blocks.dtype == np.float32
    assert features.shape == (2, 1 + N, WIDTH)
    assert blocks.shape == (DEPTH, 2, 1 + N, WIDTH)
    np.testing.assert_allclose(features, expected.tokens, atol=1e-4)
    np.testing.assert_allclose(blocks, expected.blocks, atol=1e-4)


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
    features, blocks = (
        encoder.features(batch.image, visible),
        encoder.intermediate(batch.image, visible=visible),
    )
    for row, seen in enumerate(visible):
        pixels = batch.image[row : row + 1] / np.float32(255)
        alone = encode(encoder.encoder, encoder.params, pixels, seen[None], int(seen.sum()))
        rows = np.flatnonzero(np.insert(seen, 0, True))
        tokens, levels = np.asarray(alone.tokens)[0], np.asarray(alone.blocks)[:, 0]
        if encoder.encoder.mask_token:
            tokens, levels = tokens[rows], levels[:, rows]
        np.testing.assert_allclose(features[row, rows], tokens, atol=1e-4)
        np.testing.assert_allclose(blocks[:, row, rows], levels, atol=1e-4)
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
        (np.zeros((2, SIZE, SIZE, 3)), True, "visible has 0 dimensions, expected"),
        (np.zeros((2, SIZE, SIZE, 3)), np.ones(N, bool), r"1 dimensions, expected bool\[B, 16\]"),
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
    with pytest.raises(UserError, match="is not the workdir of a run; expected a file"):
        occinv.load_encoder(tmp_path / "nothing")
    table = tmp_path / "table"
    save_run(table / "runs" / "cmae" / "seed0" / "pretrain", CMAE)
    with pytest.raises(
        UserError, match=rf"workdirs of runs in it: 1, such as {table}/runs/cmae/seed0/pre"
    ):
        occinv.load_encoder(table)


@pytest.mark.parametrize("name", ["vit.pth", "hf/model.safetensors", "timm/model.safetensors"])
def test_weights_of_another_library_are_to_be_imported(name: str, tmp_path: Path) -> None:
    for folder in ("hf", "timm"):
        (tmp_path / folder).mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"hidden_size": 3}')
    (tmp_path / name).touch()
    path = tmp_path / name.removesuffix("/model.safetensors")
    with pytest.raises(UserError, match=f"occinv weights import {path} --to DIR"):
        occinv.load_encoder(path)


def test_layers_are_counted_from_1_and_from_the_end(encoder: LoadedEncoder) -> None:
    image = images(2).image
    every = encoder.intermediate(image)
    chosen = encoder.intermediate(image, layers=[-1, 1])
    np.testing.assert_allclose(chosen, every[[DEPTH - 1, 0]], atol=1e-5)
    for layer in (0, DEPTH + 1, -DEPTH - 1):
        with pytest.raises(ValueError, match=f"layer {layer}, expected 1 to {DEPTH}"):
            encoder.intermediate(image, layers=[layer])
        with pytest.raises(ValueError, match=f"layer {layer}, expected 1 to {DEPTH}"):
            encoder.attention(image, layer)
    with pytest.raises(ValueError, match=r"layers=-1, expected several blocks, such as \[-1\]"):
        encoder.intermediate(image, -1)  # type: ignore[arg-type]
    for wrong, kind in ((np.ones((2, N), bool), "ndarray"), (None, "NoneType"), (1.0, "float")):
        with pytest.raises(ValueError, match=f"layer of type {kind}, expected 1 to {DEPTH}"):
            encoder.attention(image, wrong)  # type: ignore[arg-type]


def test_attention_is_that_of_the_evaluator(encoder: LoadedEncoder) -> None:
    image = images(5).image
    expected = class_attention(encoder.encoder, encoder.params, image / np.float32(255))
    assert expected.shape == (DEPTH, 5, 2, N)
    np.testing.assert_allclose(encoder.attention(image), expected[-1], atol=1e-5)
    found = encoder.attention(iter(image), 1, batch_size=2)
    np.testing.assert_allclose(found, expected[0], atol=1e-5)


# Batches.


@pytest.mark.parametrize("given", ["array", "iterator"])
def test_batches_are_the_same_as_all_at_once_and_compile_once(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = LoadedEncoder(*encoder_of(MAE))
    image = images(7).image
    visible = np.arange(N) < np.array([4, 8, 8, 4, 8, 4, 4])[:, None]
    whole, occluded = encoder.features(image), encoder.features(image, visible)

    def given_images() -> Any:
        return image if given == "array" else iter(image)

    programs = set()

    def encode(*arguments: Any) -> Any:
        programs.add((len(arguments[2]), arguments[4]))  # the images and the visible patches
        return _encode(*arguments)

    monkeypatch.setattr(occinv.encoder, "_encode", encode)
    found = encoder.features(given_images(), batch_size=3)
    assert programs == {(3, None)}
    np.testing.assert_allclose(found, whole, atol=1e-4)
    found = encoder.features(given_images(), visible, batch_size=3)
    assert programs == {(3, None), (3, 4), (3, 8)}
    np.testing.assert_allclose(found, occluded, atol=1e-4)


def test_an_iterator_is_read_batch_by_batch(encoder: LoadedEncoder) -> None:
    read = []

    def one_by_one() -> Iterator[np.ndarray]:
        for number, image in enumerate(images(5).image):
            read.append(number)
            yield image

    batches = encoder._batches(one_by_one(), 2)
    assert len(next(batches)) == 2
    assert read == [0, 1]
    assert [len(batch) for batch in batches] == [2, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cat.jpg", "images is one image, 'cat.jpg'; expected several"),
        (Image.new("RGB", (4, 4)), "images is one image"),
        ([], "images is empty"),
        (np.zeros((0, SIZE, SIZE, 3), np.uint8), "images is empty"),
        ([np.zeros((4, 4, 3), np.uint8)], r"\[1, 4, 4, 3\], expected \[B, 32"),
    ],
)
def test_impossible_iterables_are_errors(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadedEncoder(*encoder_of(MAE)).features(given)


def test_visible_has_a_row_for_each_image(encoder: LoadedEncoder) -> None:
    with pytest.raises(ValueError, match="visible has 3 rows, expected 2"):
        encoder.features(iter(images(2).image), np.ones((3, N), bool))


# Preprocessing.


def test_preprocessing_is_that_of_the_runs_evaluation(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    pictures = [
        Image.fromarray(generator.integers(0, 256, (size, 60, 3), np.uint8)) for size in (40, 90)
    ]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    paths = [tmp_path / "a" / "0.png", tmp_path / "a" / "1.jpg", tmp_path / "a" / "2.png"]
    pictures[0].save(paths[0])
    pictures[1].save(paths[1], exif=exif)
    pictures[0].convert("P").save(paths[2])
    source = open_source(f"folder:{tmp_path}", train=False)
    spec = LoaderSpec(batch_size=3, image_size=SIZE, resize_ratio=0.5, num_threads=0)
    expected = EvalLoader(source, spec).batch(0).image
    encoder = LoadedEncoder(*encoder_of(MAE), resize_ratio=0.5)
    for path, image in zip(paths, expected, strict=True):
        np.testing.assert_array_equal(encoder.preprocess(path), image)
        np.testing.assert_array_equal(encoder.preprocess(str(path)), image)
    with Image.open(paths[2]) as opened:
        np.testing.assert_array_equal(encoder.preprocess(opened), expected[2])
    with Image.open(paths[1]) as opened:  # turned upright, within the rounding of two decoders
        assert abs(encoder.preprocess(opened).astype(int) - expected[1]).mean() < 2
    np.testing.assert_array_equal(encoder.preprocess(np.asarray(pictures[0])), expected[0])
    gray, params = encoder.encoder.clone(channels=1, image_size=(8, 24)), encoder.params
    shown = LoadedEncoder(gray, params, resize_ratio=0.5).preprocess(paths[0])
    crop = EvalLoader(source, dataclasses.replace(spec, channels=1, image_size=(8, 24))).batch(0)
    np.testing.assert_array_equal(shown, crop.image[0])
    mixed = [paths[0], str(paths[1]), expected[2]]  # arrays are used as they are
    np.testing.assert_array_equal(encoder.features(mixed), encoder.features(expected))


def test_what_is_not_an_image_is_an_error(tmp_path: Path) -> None:
    encoder = LoadedEncoder(*encoder_of(MAE))
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"cannot read .*text.jpg: no image"):
        encoder.preprocess(tmp_path / "text.jpg")
    with pytest.raises(FileNotFoundError):
        encoder.preprocess(tmp_path / "missing.jpg")
    with pytest.raises(ValueError, match=r"float64\[4, 4, 3\], expected uint8"):
        encoder.preprocess(np.zeros((4, 4, 3)))


def test_load_encoder_takes_the_resize_ratio_of_the_run(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", MAE, resize_ratio=0.6)
    assert occinv.load_encoder(run).resize_ratio == 0.6


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
