"""From a file or encoded bytes to RGB pixels."""

from __future__ import annotations

import io
import logging
import math
import os
from pathlib import Path
from typing import IO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger("occinv.data")

# What libjpeg says of pixels that it had to invent. What else it complains of (bytes left over
# before a marker, an unknown version) is found in sound files too, some of ImageNet's among them.
LOSSES = ("premature end", "bad huffman code", "bad arithmetic code", "instead of rst")


def decode_rgb(file: str | os.PathLike[str] | IO[bytes], name: str | None = None) -> np.ndarray:
    """Decodes an image wholly: uint8 [H, W, 3], RGB, upright.

    The EXIF orientation is applied. Grey is repeated, 16-bit grey is scaled to 8, palettes are
    looked up, CMYK is converted, and an alpha channel is dropped (not blended), as torchvision's
    loader does. The pixels are Pillow's, but a JPEG whose data end early or make no sense is an
    error, where Pillow would invent the rest. Lesser complaints of the decoder are logged, with
    `name` if `file` is no path.

    Raises: whatever the decoders raise for a file that is missing, damaged or no image (OSError,
    SyntaxError, ValueError, struct.error ...); a Source names the file in a DecodeError.
    """
    encoded = Path(file).read_bytes() if isinstance(file, str | os.PathLike) else file.read()
    try:
        if _is_plain_jpeg(encoded):
            return simplejpeg.decode_jpeg(encoded, "RGB")
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
        # Pillow opens a 16-bit grey PNG as "I;16" or "I", and would clip, not scale, to 8 bits.
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray((wide // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _is_plain_jpeg(encoded: bytes) -> bool:
    """Whether a JPEG is to be shown as it is stored: neither turned nor CMYK, and no bomb.

    Raises: ValueError for a header that libjpeg does not understand.
    """
    if not encoded.startswith(b"\xff\xd8\xff") or _is_turned(encoded):
        return False
    height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    limit = Image.MAX_IMAGE_PIXELS or math.inf  # above it Pillow warns, and above twice it refuses
    return colours in ("YCbCr", "RGB", "Gray") and height * width <= limit


def _is_turned(encoded: bytes) -> bool:
    # Pillow knows, but reading a header takes it ten times longer than this, under the GIL.
    if b"Exif\0\0" not in encoded and b"tiff:Orientation" not in encoded:
        return False
    with Image.open(io.BytesIO(encoded)) as opened:
        return opened.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
