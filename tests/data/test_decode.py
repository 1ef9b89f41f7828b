"""JPEGs have a decoder of their own: the pixels of Pillow, and more said of what is damaged."""

import io
import logging

import numpy as np
import pytest
import simplejpeg
from PIL import ExifTags, Image, ImageFile, ImageOps

from occinv.data.decode import decode_rgb

RNG = np.random.default_rng(0)


def jpeg(image=None, **options):
    if image is None:
        coarse = Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        image = coarse.resize((93, 71), Image.Resampling.BICUBIC)  # no multiple of a block
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def by_pillow(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 30},
        {"quality": 95, "subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_the_pixels_are_pillows(mode, options):
    image = Image.fromarray(RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)).convert(mode)
    if mode != "RGB":
        options = {key: value for key, value in options.items() if key != "keep_rgb"}
    if mode == "L":
        options.pop("subsampling", None)
    encoded = jpeg(image, **options)
    np.testing.assert_array_equal(decode_rgb(encoded, "image"), by_pillow(encoded))


def test_orientation_is_pillows_in_exif_and_xmp():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/' + (
        b'22-rdf-syntax-ns#"><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    kinds = [{"xmp": xmp}]
    for orientation in range(10):  # 0 and 9 mean nothing
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        kinds.append({"exif": exif})
    shapes = []
    for options in kinds:
        encoded = jpeg(**options)
        with Image.open(io.BytesIO(encoded)) as image:
            upright = np.asarray(ImageOps.exif_transpose(image))
        pixels = decode_rgb(encoded, "image")
        np.testing.assert_array_equal(pixels, upright)
        shapes.append(pixels.shape[0])
    assert shapes == [93, *[71] * 5, *[93] * 4, 71]


def test_a_bomb_is_left_to_pillow_which_refuses(monkeypatch):
    encoded = jpeg()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 71 * 93 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        decode_rgb(encoded, "image")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 71 * 93 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        decode_rgb(encoded, "image")
    for limit in (71 * 93, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert decode_rgb(encoded, "image").shape == (71, 93, 3)


def test_a_jpeg_that_only_pillow_decodes_is_left_to_it(monkeypatch, caplog):
    def refuse(*args, **options):
        raise ValueError("Could not determine subsampling level")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", refuse)
    encoded = jpeg()
    with caplog.at_level(logging.WARNING, logger="occinv.data"):
        np.testing.assert_array_equal(decode_rgb(encoded, "image"), by_pillow(encoded))


def test_invented_pixels_are_an_error():
    encoded = jpeg(quality=95)
    cut = encoded[: len(encoded) // 2]
    closed = cut + b"\xff\xd9"  # an upload that broke off and was closed properly
    assert by_pillow(closed).shape == (71, 93, 3)  # Pillow grays the rest and says nothing
    for damaged in (cut, closed, encoded[:-2]):
        with pytest.raises(ValueError, match=r"[Pp]remature end"):
            decode_rgb(damaged, "image")


def test_what_is_no_image_is_shown():
    for encoded, shown in (
        (b"<html>404</html>", r"16 bytes, the first b'<html>40'"),
        (b"", "0 byt"),
    ):
        with pytest.raises(ValueError, match=f"no image: {shown}"):
            decode_rgb(encoded, "image")


def test_plain_jpegs_do_without_pillow(monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    files = [jpeg(), jpeg(exif=exif), jpeg(keep_rgb=True), jpeg(Image.new("L", (8, 8)))]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("by Pillow"))
    for encoded in files:
        decode_rgb(encoded, "image")
    # Nor is it asked for an orientation because of bytes that are among the pixels or behind them.
    monkeypatch.setattr(Image, "open", lambda *args: pytest.fail("by Pillow"))
    decode_rgb(jpeg() + b"Exif\0\0", "image")


def test_a_lesser_complaint_is_logged_with_the_name(caplog):
    encoded = jpeg()
    odd = encoded[:-2] + bytes(100) + encoded[-2:]  # more than the scan needs before its end
    with caplog.at_level(logging.WARNING, logger="occinv.data"):
        pixels = decode_rgb(odd, "folder/odd.jpg")
        np.testing.assert_array_equal(pixels, by_pillow(encoded))
        np.testing.assert_array_equal(decode_rgb(odd, "record 7"), pixels)
    assert [record.message.split(" extraneous")[0][:-3] for record in caplog.records] == [
        "folder/odd.jpg: Corrupt JPEG data:",
        "record 7: Corrupt JPEG data:",
    ]
    caplog.clear()
    decode_rgb(encoded, "image")
    assert not caplog.records


def test_orientation_is_found_behind_other_segments():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    encoded = jpeg(exif=exif)
    thumbnail = b"\xff\xed\x00\x0aPhoto\x00\xff\xda"  # the marker of a scan, within a segment
    for before in (thumbnail, b"\xff", thumbnail + b"\xff"):  # a marker may be filled up with 0xff
        assert decode_rgb(encoded[:2] + before + encoded[2:], "image").shape == (93, 71, 3)
