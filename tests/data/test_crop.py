import concurrent.futures

import numpy as np
import pytest
from PIL import Image

from occinv.data import crop
from occinv.data.crop import Crop, RandomCrops, center_crop, crop_box, resize
from occinv.data.embedded import photos


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_resized_crop(image, size, rng, scale=(0.2, 1.0), flip=0.5):
    (crop,) = RandomCrops([Crop(size)], rng, scale, flip).cut(image)
    return crop


def by_pillow(image, width, height):
    """The width first, as Pillow up to 12 does by itself."""
    narrow = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BICUBIC)
    return np.asarray(narrow.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("has_vectorized", [True, False])
@pytest.mark.parametrize(
    ("height", "width"),
    [(200, 230), (90, 100), (61, 500), (640, 480), (1, 300), (1, 1), (3, 20000)],
)
def test_resize_is_pillows_to_two_levels(monkeypatch, has_vectorized, height, width):
    if not has_vectorized:
        monkeypatch.setattr(crop, "_resizer", None)
    elif crop._resizer is None:
        pytest.skip("the faster library has no wheel for this machine")
    sharp = np.where(noise(height, width) > 127, 255, 0).astype(np.uint8)  # overshoots at its edges
    for image in (noise(height, width), sharp, sharp[:, ::-1][::2]):
        for size in ((224, 224), (32, 32), (96, 100)):
            expected = by_pillow(np.ascontiguousarray(image), *size).astype(int)
            resized = resize(image, *size)
            assert resized.shape == expected.shape and resized.dtype == np.uint8
            error = np.abs(resized - expected)
            assert error.max() <= 2 * has_vectorized and error.mean() <= 0.02


def test_crops_of_photographs_are_hardly_other_than_pillows():
    for photograph in photos(True, 128).images[::97]:
        rng = np.random.default_rng(int(photograph.sum()))
        state = rng.bit_generator.state
        left, top, right, bottom = crop_box(128, 128, rng, (0.2, 1.0))
        rng.bit_generator.state = state
        crop = random_resized_crop(photograph, 96, rng, flip=0.0)
        whole = Image.fromarray(photograph)
        expected = whole.crop((left, top, right, bottom)).resize((96, 96), Image.Resampling.BICUBIC)
        assert np.abs(crop - np.asarray(expected, int)).mean() < 0.1  # with any Pillow


def test_threads_resize_at_once():
    image = noise(200, 300)
    expected = resize(image, 64, 64)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for resized in threads.map(lambda _: resize(image, 64, 64), range(200)):
            np.testing.assert_array_equal(resized, expected)


def test_whole_image_without_flip_is_the_identity():
    for size in (8, 32, 64):
        for seed in range(20):
            image = noise(size, size, seed)
            rng = np.random.default_rng(seed)
            out = random_resized_crop(image, size, rng, scale=(1.0, 1.0), flip=0.0)
            np.testing.assert_array_equal(out, image)


def test_flip_mirrors_left_and_right():
    image = noise(16, 16)
    rng = np.random.default_rng(0)
    out = random_resized_crop(image, 16, rng, scale=(1.0, 1.0), flip=1.0)
    np.testing.assert_array_equal(out, image[:, ::-1])
    flips = [
        not np.array_equal(random_resized_crop(image, 16, rng, scale=(1.0, 1.0), flip=0.5), image)
        for _ in range(200)
    ]
    assert 70 < sum(flips) < 130


def test_the_box_has_the_published_distribution():
    rng = np.random.default_rng(0)
    boxes = np.array([crop_box(1000, 1000, rng, (0.2, 1.0)) for _ in range(8000)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    area, aspect = width * height / 1e6, width / height
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= 1000 and bottom.max() <= 1000
    assert 0.199 < area.min() < 0.21 and area.max() > 0.95
    assert 0.745 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.34
    assert abs(np.log(aspect).mean()) < 0.01  # symmetric: log-uniform, not uniform
    # Small areas are never refused, so they are uniform: as many in 0.2..0.3 as in 0.3..0.4.
    counts, _ = np.histogram(area, [0.2, 0.3, 0.4, 0.5])
    assert abs(counts - counts.mean()).max() < 100
    # The corner is uniform over what fits.
    small = width < 990
    assert abs((left / (1000 - width + 1))[small].mean() - 0.5) < 0.02
    assert abs((top / (1000 - height + 1))[small & (height < 990)].mean() - 0.5) < 0.02


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (1000, 100, (434, 0, 567, 100)),  # too wide: 133 x 100 of the middle
        (100, 1000, (0, 433, 100, 566)),  # too tall: 100 x 133
        (100, 100, (0, 0, 100, 100)),
    ],
)
def test_central_fallback(width, height, box):
    rng = np.random.default_rng(0)
    # An area above the whole image never fits, so the ten tries all fail.
    assert crop_box(width, height, rng, (2.0, 3.0))[2:] == pytest.approx(box[2:], abs=1)
    assert crop_box(width, height, rng, (2.0, 3.0))[:2] == pytest.approx(box[:2], abs=1)


def test_crop_sees_only_its_box():
    # Pixels outside the box must not bleed in through the filter.
    rng = np.random.default_rng(1)
    state = rng.bit_generator.state
    left, top, right, bottom = crop_box(64, 64, rng, (0.2, 0.4))
    image = noise(64, 64)
    changed = 255 - image
    changed[top:bottom, left:right] = image[top:bottom, left:right]
    outs = []
    for pixels in (image, changed):
        rng.bit_generator.state = state
        outs.append(random_resized_crop(pixels, 16, rng, scale=(0.2, 0.4), flip=0.0))
    np.testing.assert_array_equal(*outs)


def test_center_crop():
    image = noise(32, 32)
    np.testing.assert_array_equal(center_crop(image, 32, 1.0), image)
    wide = noise(32, 50)
    np.testing.assert_array_equal(center_crop(wide, 32, 1.0), wide[:, 9:41])
    # 224 at 0.875: short side to 256, then the middle.
    tall = noise(600, 300)
    np.testing.assert_array_equal(
        center_crop(tall, 224, 0.875), resize(tall, 256, 512)[144:368, 16:240]
    )


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40)])
def test_crops_of_rectangles(height, width):
    """The box of a random crop is that of a square; the center covers the rectangle, just."""
    image = noise(height, width)
    rng = np.random.default_rng(3)
    state = rng.bit_generator.state
    left, top, right, bottom = crop_box(width, height, rng, (0.2, 1.0))
    rng.bit_generator.state = state
    found = random_resized_crop(image, (12, 20), rng, flip=0.0)
    np.testing.assert_array_equal(found, resize(image[top:bottom, left:right], 20, 12))
    rng.bit_generator.state = state
    mirrored = random_resized_crop(image, (12, 20), rng, flip=1.0)
    np.testing.assert_array_equal(mirrored, found[:, ::-1])
    # At 0.8 both sides are at least 15 x 25.
    whole = (15, 33) if height < width else (56, 25)
    top, left = round((whole[0] - 12) / 2), round((whole[1] - 20) / 2)
    expected = resize(image, whole[1], whole[0])[top : top + 12, left : left + 20]
    np.testing.assert_array_equal(center_crop(image, (12, 20), 0.8), expected)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_every_channel_is_resized_as_one_of_three(channels):
    image = np.concatenate([noise(20, 30), noise(20, 30, 1)], axis=2)[..., :channels]
    found = resize(image, 12, 8, (1.5, 2, 29, 18))
    assert found.shape == (8, 12, channels) and found.dtype == np.uint8
    for channel in range(channels):
        rgb = image[..., [channel] * 3]
        expected = resize(rgb, 12, 8, (1.5, 2, 29, 18))[..., 0]
        np.testing.assert_array_equal(found[..., channel], expected)
