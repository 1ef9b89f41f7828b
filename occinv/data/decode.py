"""From a file or encoded bytes to RGB pixels."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger("occinv.data")

# What libjpeg says of pixels that it had to invent. What else it complains of (bytes left over
# before a marker, an unknown version) is found in sound files too, some of ImageNet's among them.
LOSSES = ("premature end", "bad huffman code", "bad arithmetic code", "instead of rst")

# From an image's width and height to how many times smaller it may come: 1, 2, 4 or 8.
Reduction = Callable[[int, int], int]


def decode_rgb(
    file: str | os.PathLike[str] | IO[bytes],
    name: str | None = None,
    reduction: Reduction | None = None,
) -> np.ndarray:
    """Decodes an image wholly: uint8 [H, W, 3], RGB, upright.

    The EXIF orientation is applied. Gray is repeated, 16-bit gray is scaled to 8, palettes are
    looked up, CMYK is converted, and an alpha channel is dropped (not blended), as torchvision's
    loader does. The pixels are Pillow's, but a JPEG whose data end early or make no sense is an
    error, where Pillow would invent the rest. Lesser complaints of the decoder are logged, with
    `name` if `file` is no path.

    reduction: is asked before a JPEG is decoded, which then comes so many times smaller, sides
      rounded up, by an inverse cosine transform of fewer coefficients: faster, and other pixels
      than resizing gives. What is no plain JPEG (turned, CMYK, complained of) comes whole.

    Raises: whatever the decoders raise for a file that is missing, damaged or no image (OSError,
    SyntaxError, ValueError, struct.error ...); a Source names the file in a DecodeError.
    """
    encoded = Path(file).read_bytes() if isinstance(file, str | os.PathLike) else file.read()
    try:
        if size := _plain_jpeg_size(encoded):
            factor = reduction(*size) if reduction else 1
            width, height = (-(-side // factor) for side in size)
            return simplejpeg.decode_jpeg(encoded, "RGB", min_width=width, min_height=height)
    except ValueError as complaint:
        if any(loss in str(complaint).lower() for loss in LOSSES):
            raise
        logger.warning("%s: %s", name or file, complaint)  # and see what Pillow can do
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:  # whose message is the address of the BytesIO
        raise ValueError(f"no image: {len(encoded)} bytes, the first {encoded[:8]!r}") from None
    if image.mode.startswith("I"):
        # Pillow opens a 16-bit gray PNG as "I;16" or "I", and would clip, not scale, to 8 bits.
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray((wide // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _plain_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG to be shown as it is stored: neither turned nor CMYK, no bomb.

    Raises: ValueError for a header that libjpeg does not understand.
    """
    if not encoded.startswith(b"\xff\xd8\xff") or _is_turned(encoded):
        return None
    height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
    limit = Image.MAX_IMAGE_PIXELS or math.inf  # above it Pillow warns, and above twice it refuses
    is_plain = colors in ("YCbCr", "RGB", "Gray") and height * width <= limit
    return (width, height) if is_plain else None


def _is_turned(encoded: bytes) -> bool:
    # Pillow knows, but reading a header takes it ten times longer than this, under the GIL.
    header = _before_the_pixels(encoded)
    if b"Exif\0\0" not in header and b"tiff:Orientation" not in header:
        return False
    with Image.open(io.BytesIO(encoded)) as opened:
        return opened.getexif().get(ExifTags.Base.Orientation) in range(2, 9)


def _before_the_pixels(encoded: bytes) -> bytes:
    """The segments of a JPEG up to its first scan; all of it where they are not plain to see."""
    end = 2
    while encoded[end : end + 1] == b"\xff" and encoded[end + 1 : end + 2] not in b"\xda\xff":
        end += 2 + int.from_bytes(encoded[end + 2 : end + 4])  # the marker, and the rest's length
    return encoded[:end] if encoded[end : end + 2] == b"\xff\xda" else encoded
