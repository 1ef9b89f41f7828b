import socket
import time

import numpy as np
import pytest
from PIL import Image

from occinv.data.embedded import (
    PHOTOGRAPHS,
    TEST_TILES,
    TRAIN_TILES,
    cut_tiles,
    digits,
    photos,
    region_boxes,
)
from occinv.schema import UserError


def test_photos_are_balanced_deterministic_fast_and_offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    photos.cache_clear()
    start = time.monotonic()
    train, test = photos(True), photos(False)
    assert time.monotonic() - start < 4
    assert train.images.shape == (18 * TRAIN_TILES, 32, 32, 3) and train.images.dtype == np.uint8
    assert test.images.shape == (18 * TEST_TILES, 32, 32, 3)
    assert train.classes == test.classes == tuple(PHOTOGRAPHS)
    assert train.labels.dtype == np.int32
    np.testing.assert_array_equal(np.bincount(train.labels), [TRAIN_TILES] * 18)
    np.testing.assert_array_equal(np.bincount(test.labels), [TEST_TILES] * 18)
    photos.cache_clear()
    np.testing.assert_array_equal(photos(True).images, train.images)


@pytest.mark.parametrize("size", [(512, 512), (600, 400), (303, 384), (1411, 1411), (448, 172)])
def test_train_and_test_regions_share_no_pixel(size):
    width, height = size
    seen = np.zeros((height, width), np.int32)
    for train, mark in ((True, 1), (False, 100)):
        for left, top, right, bottom in region_boxes(width, height, train):
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            seen[top:bottom, left:right] += mark
    assert set(np.unique(seen)) <= {0, 1, 100}  # no pixel twice
    assert 0.3 < (seen == 100).sum() / (seen > 0).sum() < 0.37
    assert (seen > 0).mean() > 0.8


def test_no_test_pixel_reaches_a_train_tile():
    # Change every test pixel of a photograph: train tiles must stay the same to the last bit, and
    # the other way round.
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (300, 451, 3), dtype=np.uint8)
    for train in (True, False):
        changed = pixels.copy()
        for left, top, right, bottom in region_boxes(451, 300, not train):
            changed[top:bottom, left:right] = 255 - changed[top:bottom, left:right]
        tiles, again = (cut_tiles(Image.fromarray(p), 32, train) for p in (pixels, changed))
        np.testing.assert_array_equal(tiles, again)
        others, again = (cut_tiles(Image.fromarray(p), 32, not train) for p in (pixels, changed))
        assert not np.array_equal(others, again)


def test_tiles_of_one_part_differ():
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for train in (True, False):
        tiles = cut_tiles(Image.fromarray(pixels), 16, train)
        assert len({tile.tobytes() for tile in tiles}) == len(tiles)


def test_a_larger_tile_shows_the_same_region():
    small, large = photos(True, 32), photos(True, 48)
    assert large.images.shape == (1800, 48, 48, 3)
    for i in range(0, 1800, 90):
        shrunk = Image.fromarray(large.images[i]).resize((32, 32), Image.Resampling.BICUBIC)
        difference = np.asarray(shrunk, np.int32) - small.images[i].astype(np.int32)
        assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("tile", [33, 6, 200])
def test_odd_tile_sizes_are_refused(tile):
    with pytest.raises(UserError, match=f"photos:{tile}"):
        photos(True, tile)


def test_sources_cannot_be_written_into():
    with pytest.raises(ValueError, match="read-only"):
        photos(True).images[0] = 0


def test_digits():
    train, test = digits(True), digits(False)
    assert len(train) + len(test) == 1797
    assert train.images.shape[1:] == (32, 32, 3) and train.images.dtype == np.uint8
    np.testing.assert_allclose(
        np.bincount(test.labels) / np.bincount(train.labels), 0.25, atol=0.02
    )
    assert not {i.tobytes() for i in train.images} & {i.tobytes() for i in test.images}
    np.testing.assert_array_equal(train.images[..., 0], train.images[..., 2])
    from sklearn.datasets import load_digits

    first = load_digits().images[0] * (255 / 16)  # digit 0, in the train part
    shrunk = train.images[0, :, :, 0].reshape(8, 4, 8, 4).mean((1, 3))
    assert np.corrcoef(first.ravel(), shrunk.ravel())[0, 1] > 0.97
    sample = train.read(3)
    assert sample.label == train.labels[3] and sample.index == 3
