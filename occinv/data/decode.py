"""Decodes images to RGB pixels, and converts these to gray."""

from __future__ import annotations

import io
import logging
import math
import re

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from occinv.data.source import Reduction
from occinv.schema import UserError
from occinv.text import printable

logger = logging.getLogger("occinv.data")

# Messages of libjpeg about pixels that it had to invent. Its other messages (extra bytes before a
# marker, an unknown version) also come for intact files, among them some of ImageNet.
LOSSES = ("premature end", "bad huffman code", "bad arithmetic code", "instead of rst")

# The first bytes of a file of each format that is read. No other decoder of Pillow gets a file,
# whatever its name is: some start other programs (EPS: Ghostscript), and most are rarely tested.
FORMATS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "BMP": re.compile(rb"BM"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
}


def decode_rgb(encoded: bytes, name: str, reduction: Reduction | None = None) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, BMP, GIF or TIFF to RGB, upright; of several frames the first.

    The format is that of the content, whatever the name is. The EXIF orientation is applied. Gray
    is repeated, 16-bit gray is scaled to 8 bits, palettes are looked up, CMYK is converted, and an
    alpha channel is dropped (not blended), as in torchvision's loader. The pixels are Pillow's, but
    truncated or inconsistent JPEG data are an error, where Pillow would invent the missing pixels.
    Other messages of the decoder are logged.

    Args:
      encoded: Content of the file.
      name: Name of the image in the log.
      reduction: Called with the size of a JPEG before it is decoded. Returns the factor by which
        it is decoded smaller (sides rounded up), with an inverse cosine transform of fewer
        coefficients: faster than resizing, and with other pixels. Images that are not plain JPEGs
        (rotated, CMYK, with messages of the decoder) are decoded whole.

    Returns:
      uint8 [H, W, 3].

    Raises:
      Exception: Whatever the decoders raise for bytes that are damaged or not an image (OSError,
        SyntaxError, ValueError, struct.error ...). Sources turn it into a DecodeError.
    """
    try:
        if size := _plain_jpeg_size(encoded):
            factor = reduction(*size) if reduction else 1
            width, height = (-(-side // factor) for side in size)
            return simplejpeg.decode_jpeg(encoded, "RGB", min_width=width, min_height=height)
    except ValueError as complaint:
        if any(loss in str(complaint).lower() for loss in LOSSES):
            raise
        logger.warning("%s: %s", printable(name), complaint)  # Pillow decodes it below, if it can
    with open_image(encoded) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
        if opened.format == "TIFF" and image.mode in ("I", "F"):
            raise ValueError("a TIFF of 32 bits a value, expected 8 or 16")
    return to_rgb(image)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert an upright image of any mode as `decode_rgb` does: uint8 [H, W, 3]."""
    if image.mode.startswith("I"):
        # Pillow opens a 16-bit gray PNG as "I;16" or "I", and would clip instead of scale.
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray((wide // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return an image with this number of channels; RGB becomes gray, by Pillow's luma, for 1.

    Args:
      image: uint8 [H, W, C].
      channels: The channels of the result.

    Raises:
      UserError: The image has another number of channels.
    """
    if image.ndim == 3 and image.shape[2] == channels:
        return image
    if channels == 1 and image.ndim == 3 and image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    raise UserError(
        f"data.channels={channels}, but an image has the shape {list(image.shape)}, expected "
        f"[H, W, {channels}]; set data.channels to the channels of the images (RGB also becomes 1)"
    )


def open_image(encoded: bytes) -> Image.Image:
    """Open an image with Pillow's decoder for the format of its content; it is not decoded yet.

    Raises:
      ValueError: The content has none of the FORMATS, or its header is damaged.
      DecompressionBombError: The image has more than twice Pillow's limit of pixels.
    """
    kind = next((name for name, start in FORMATS.items() if start.match(encoded)), None)
    size = f"{len(encoded)} bytes, the first {encoded[:8]!r}"
    if kind is None:
        raise ValueError(f"no image: {size}, expected a file of {', '.join(FORMATS)}")
    try:
        return Image.open(io.BytesIO(encoded), formats=[kind])
    except UnidentifiedImageError:  # its message is the address of the BytesIO
        raise ValueError(f"no image: the header of a {kind} is damaged, {size}") from None


def _plain_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Return the width and height of a JPEG that is upright, not CMYK, and not too large.

    A header that libjpeg does not understand raises ValueError.
    """
    if not FORMATS["JPEG"].match(encoded) or _is_rotated(encoded):
        return None
    height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    limit = Image.MAX_IMAGE_PIXELS or math.inf  # above it Pillow warns, above twice it refuses
    is_plain = colors in ("YCbCr", "RGB", "Gray") and height * width <= limit
    return (width, height) if is_plain else None


def _is_rotated(encoded: bytes) -> bool:
    # Pillow can tell, but takes ten times longer to read a header, and holds the GIL.
    header = _before_the_pixels(encoded)
    if b"Exif\0\0" not in header and b"tiff:Orientation" not in header:
        return False
    with open_image(encoded) as opened:
        return opened.getexif().get(ExifTags.Base.Orientation) in range(2, 9)


def _before_the_pixels(encoded: bytes) -> bytes:
    """Return the segments of a JPEG before its first scan, or all of it if they are irregular."""
    end = 2
    while encoded[end : end + 1] == b"\xff" and encoded[end + 1 : end + 2] not in b"\xda\xff":
        end += 2 + int.from_bytes(encoded[end + 2 : end + 4])  # the marker, then its length
    return encoded[:end] if encoded[end : end + 2] == b"\xff\xda" else encoded
