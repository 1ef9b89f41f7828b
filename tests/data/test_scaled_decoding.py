"""JPEGs decoded smaller: the same parts of the same images, from fewer pixels."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.data import crop
from occinv.data import rand_augment as augment
from occinv.data.crop import Crop, RandomCrops
from occinv.data.decode import decode_rgb
from occinv.data.folder import open_folder
from occinv.data.loader import LoaderSpec, TrainLoader, sample_rng
from occinv.data.subset import Subset

SCALE = (0.2, 1.0)


def waves(height, width):
    """Smooth, and nowhere like a few pixels beside: 10 levels a pixel at most, by place."""
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / 12), np.sin(y / 12), np.sin((x + y) / 20)]
    return np.stack([128 + 120 * plane for plane in planes], -1).round().astype(np.uint8)


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def jpeg(image, subsampling="4:4:4", **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95, subsampling=subsampling, **options)
    return stream.getvalue()


def random_crops(number, *sizes):
    crops = [Crop(size) for size in sizes]
    return RandomCrops(crops, sample_rng(0, number), SCALE, 0.5)


def whole_and_scaled(encoded, number, *sizes):
    """The crops of both, and how many times smaller the latter was decoded."""
    whole = random_crops(number, *sizes).cut(decode_rgb(encoded, "image"))
    smaller, asked = random_crops(number, *sizes), []

    def reduction(width, height):
        asked.append(smaller.reduction(width, height))
        return asked[0]

    scaled = smaller.cut(decode_rgb(encoded, "image", reduction))
    return whole, scaled, asked[0]


@pytest.mark.parametrize("has_vectorized", [True, False])
def test_scaled_crops_show_the_same_part(monkeypatch, has_vectorized):
    if not has_vectorized:
        monkeypatch.setattr(crop, "_resizer", None)
    # Odd sides: a last pixel that stands for less than the others must not shift the box.
    wave, rough = (jpeg(image(597, 795)) for image in (waves, noise))
    found = set()
    for number in range(24):
        size = (36, 75, 150, 300)[number % 4]
        (whole,), (scaled,), factor = whole_and_scaled(wave, number, size)
        error = np.abs(whole.astype(int) - scaled)
        assert error.mean() <= (0.3 * factor if factor > 1 else 0)
        assert error[2:-2, 2:-2].max() <= 6  # at the edge less of the image is seen
        (whole,), (scaled,), _ = whole_and_scaled(rough, number, size)
        assert np.abs(whole.astype(int) - scaled).mean() < 11
        found.add(factor)
    assert found == {1, 2, 4, 8}


def test_pixels_are_saved_and_no_crop_is_enlarged_by_it():
    for number in range(50):
        for sizes in ((224,), (96,), (32,), (224, 96), (96, 300, 32)):
            drawn = random_crops(number, *sizes)
            factor = drawn.reduction(1000, 750)
            rng = sample_rng(0, number)
            spare = []
            for size in sizes:
                left, top, right, bottom = crop.crop_box(1000, 750, rng, SCALE)
                rng.random()
                spare.append(min(right - left, bottom - top) / size)
            assert factor == 1 or factor <= min(spare)
            assert factor == 8 or min(spare) < 2 * factor


def test_what_a_crop_is_cut_from_is_the_box_and_its_pixels():
    # A box between pixels: at most the rest of a decoded pixel beyond its edge can be seen.
    drawn = random_crops(5, 50)
    factor = drawn.reduction(800, 600)
    assert factor == 8 or factor == 4
    left, top, right, bottom = crop.crop_box(800, 600, sample_rng(0, 5), SCALE)
    image = noise(600 // factor, 800 // factor)
    inside = (
        slice(top // factor, -(-bottom // factor)),
        slice(left // factor, -(-right // factor)),
    )
    changed = 255 - image
    changed[inside] = image[inside]
    again = random_crops(5, 50)
    again.reduction(800, 600)
    np.testing.assert_array_equal(drawn.cut(image)[0], again.cut(changed)[0])


def test_the_decoder_is_asked_for_less():
    encoded = jpeg(waves(301, 403))
    for factor in (1, 2, 4, 8):
        asked = []
        image = decode_rgb(encoded, "image", lambda *size, f=factor, a=asked: a.append(size) or f)
        assert asked == [(403, 301)]
        assert image.shape == (-(-301 // factor), -(-403 // factor), 3)


def test_what_is_no_plain_jpeg_comes_whole():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = waves(64, 96)
    png, cmyk = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    Image.fromarray(image).convert("CMYK").save(cmyk, "JPEG")
    for encoded in (png.getvalue(), cmyk.getvalue(), jpeg(image, exif=exif)):
        asked = pytest.fail
        whole = decode_rgb(encoded, "image")
        np.testing.assert_array_equal(decode_rgb(encoded, "image", asked), whole)
    # What libjpeg complains of comes whole from Pillow, after the reduction was asked for.
    odd = jpeg(image)[:-2] + bytes(100) + b"\xff\xd9"
    (whole,), (scaled,), factor = whole_and_scaled(odd, 0, 8)
    assert factor > 1
    np.testing.assert_array_equal(whole, scaled)


def test_truncation_is_noticed_at_every_scale():
    encoded = jpeg(waves(301, 403), "4:2:0")
    for part in (0.3, 0.6, 0.95):
        cut = encoded[: int(part * len(encoded))]
        for damaged in (cut, cut + b"\xff\xd9"):
            for factor in (1, 2, 4, 8):
                with pytest.raises(ValueError, match=r"[Pp]remature end"):
                    decode_rgb(damaged, "image", lambda *_, f=factor: f)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven JPEGs of many sizes, and a damaged one."""
    folder = tmp_path_factory.mktemp("jpegs")
    for number in range(12):
        encoded = jpeg(waves(150 + 41 * number, 500 - 13 * number), "4:2:0")
        (folder / f"{number:02}.jpg").write_bytes(encoded[: None if number != 7 else -500])
    return open_folder(str(folder), train=True)


def loader(source, **options):
    options = {"batch_size": 24, "image_size": 64, "num_threads": 0, "max_corrupt": 1} | options
    return TrainLoader(source, LoaderSpec(crops=(Crop(24), Crop(16, (0.05, 0.2))), **options))


def test_batches_are_those_of_whole_decoding(folder, monkeypatch):
    pixels = []
    decode = simplejpeg.decode_jpeg

    def counted(*args, **options):
        image = decode(*args, **options)
        pixels.append(image.shape[0] * image.shape[1])
        return image

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    whole, wholly = loader(folder).batch(3), sum(pixels)
    scaled, partly = loader(folder, scaled_decoding=True).batch(3), sum(pixels) - wholly
    assert partly < wholly / 4
    np.testing.assert_array_equal(whole.index, scaled.index)
    assert np.bincount(scaled.index, minlength=12)[7] == 0  # replaced, by the same images
    different = 0
    for ours, theirs in zip(
        (scaled.image, *scaled.crops), (whole.image, *whole.crops), strict=True
    ):
        error = np.abs(ours.astype(int) - theirs).mean((1, 2, 3))
        assert error.max() < 2
        different += (error > 0).sum()
    assert different > 40
    # Off, the crops are of the pixels that Pillow decodes.
    for row, index in enumerate(whole.index[:8].tolist()):
        drawn = random_crops(72 + row, 64)
        with Image.open(f"{folder.folder}/{folder.names[index]}") as image:
            (expected,) = drawn.cut(np.asarray(image))
        np.testing.assert_array_equal(whole.image[row], expected)


def test_a_part_of_a_source_comes_smaller_too(folder):
    part = Subset(folder, np.array([3, 5]))
    for index, parents in enumerate((3, 5)):
        smaller = folder.read(parents, lambda *size: 4).image
        assert smaller.shape[0] == -(-(150 + 41 * parents) // 4)
        np.testing.assert_array_equal(part.read(index, lambda *size: 4).image, smaller)


def test_what_is_drawn_after_the_crops_is_the_same(folder, monkeypatch):
    def constant(image, rng):
        return Image.new("RGB", image.size, tuple(rng.integers(0, 256, 3).tolist()))

    monkeypatch.setattr(augment, "rand_augment", constant)
    whole, scaled = (
        loader(folder, rand_augment=True, scaled_decoding=is_scaled).batch(0)
        for is_scaled in (False, True)
    )
    np.testing.assert_array_equal(whole.image, scaled.image)


def test_a_config_asks_for_it_in_training_only(folder):
    from occinv.train.prepare import prepare

    options = [f"--config.data.{name}=folder:{folder.folder}" for name in ("source", "eval_source")]
    options.append("--config.data.max_corrupt=1")
    runs = [
        prepare(schema.resolve(load_config(str(CONFIGS / "mae.py:smoke"), [*options, *more])))
        for more in ([], ["--config.data.scaled_decoding=True"])
    ]
    whole, scaled = (run.loader.batch(0) for run in runs)
    np.testing.assert_array_equal(whole.index, scaled.index)
    assert (whole.image != scaled.image).any((1, 2, 3)).all()
    whole, scaled = (run.validation.batch(0).image for run in runs)
    np.testing.assert_array_equal(whole, scaled)
