"""From a file or encoded bytes to RGB pixels."""

from __future__ import annotations

import io
import logging
import os
from pathlib import Path
from typing import IO

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

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
    with Image.open(io.BytesIO(encoded)) as opened:
        is_upright = opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        if opened.format in ("JPEG", "MPO") and opened.mode in ("RGB", "L") and is_upright:
            try:
                return simplejpeg.decode_jpeg(encoded, "RGB")
            except ValueError as complaint:
                if any(loss in str(complaint).lower() for loss in LOSSES):
                    raise
                logger.warning("%s: %s", name or file, complaint)
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        # Pillow opens a 16-bit grey PNG as "I;16" or "I", and would clip, not scale, to 8 bits.
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray((wide // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
