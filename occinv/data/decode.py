"""From a file or encoded bytes to an RGB image."""

from __future__ import annotations

import os
from typing import IO

import numpy as np
from PIL import Image, ImageOps


def decode_rgb(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Decodes an image wholly and returns it upright, as mode RGB with 8 bits.

    The EXIF orientation is applied. Grey is repeated, 16-bit grey is scaled to 8, palettes are
    looked up, CMYK is converted, and an alpha channel is dropped (not blended), as torchvision's
    loader does.

    Raises: whatever Pillow raises for a file that is missing, truncated or no image (OSError,
    SyntaxError, ValueError, struct.error ...); a Source names the file in a DecodeError.
    """
    with Image.open(file) as opened:
        opened.load()
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        # Pillow opens a 16-bit grey PNG as "I;16" or "I", and would clip, not scale, to 8 bits.
        wide = np.clip(np.asarray(image, np.int64), 0, 65535)
        image = Image.fromarray((wide // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")
