"""Which formats are read: by the content of a file, never by its name."""

import io

import numpy as np
import pytest
from PIL import Image

from occinv.data.decode import FORMATS, decode_rgb, open_image
from occinv.data.folder import open_folder
from occinv.data.source import DecodeError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind, tmp_path):
    gray = Image.fromarray(PIXELS[..., 0])
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(gray.convert("RGB") if kind == "WEBP" else gray, kind, **options)
    (tmp_path / "image.png").write_bytes(content)  # the name tells nothing
    read = open_folder(str(tmp_path), train=True).read(0).image
    difference = np.abs(read.astype(int) - PIXELS[..., :1])
    assert difference.max() <= (40 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert open_image(content).n_frames == 3
    assert np.abs(decode_rgb(content, "image").astype(int) - (255, 0, 0)).max() <= 2


OTHERS = ["EPS", "ICO", "TGA", "PPM", "PCX", "SGI", "DIB", "JPEG2000", "ICNS", "DDS", "AVIF"]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_reach_no_decoder(kind, tmp_path, monkeypatch):
    image = Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    (tmp_path / "cat.jpg").write_bytes(encoded(image, kind))
    monkeypatch.setattr(Image, "open", lambda *args, **options: pytest.fail("Pillow opened it"))
    with pytest.raises(
        DecodeError, match=r"cat\.jpg: no image: .* JPEG, PNG, WEBP, BMP, GIF, TIFF"
    ):
        open_folder(str(tmp_path), train=True).read(0)


@pytest.mark.parametrize("kind", FORMATS)
def test_only_the_decoder_of_the_format_gets_a_file(kind, monkeypatch):
    """Pillow would try one decoder after the other."""
    start = encoded(Image.fromarray(PIXELS), kind)[:12]
    Image.init()

    def refuse(prefix):
        pytest.fail("another decoder was tried")

    decoders = {k: v if k == kind else (v[0], refuse) for k, v in Image.OPEN.items()}
    monkeypatch.setattr(Image, "OPEN", decoders)
    with pytest.raises((ValueError, OSError)):
        decode_rgb(start, "image")


@pytest.mark.parametrize("kind", FORMATS)
def test_bombs_are_refused_in_every_format(kind, monkeypatch):
    content = encoded(Image.new("RGB", (40, 40)), kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799)
    with pytest.raises(Image.DecompressionBombError):
        decode_rgb(content, "image")


def test_16_bits_are_scaled_and_32_bits_refused():
    gray = PIXELS[..., 0]
    wide = Image.fromarray(gray.astype(np.uint16) * 257)
    read = decode_rgb(encoded(wide, "TIFF"), "image")
    np.testing.assert_array_equal(read, np.repeat(gray[..., None], 3, -1))
    for kind in (np.float32, np.int32):
        with pytest.raises(ValueError, match="a TIFF of 32 bits a value, expected 8 or 16"):
            decode_rgb(encoded(Image.fromarray(gray.astype(kind)), "TIFF"), "image")
