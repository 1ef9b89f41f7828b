"""The batch that the host hands to the device."""

from __future__ import annotations

from typing import Any

import flax.struct


@flax.struct.dataclass
class Batch:
    """Decoded and cropped images with their labels; a pytree.

    Attributes:
      image: uint8 [B, H, W, C], 0..255, with three channels RGB.
      label: int32 [B], number of the class; -1 for an image without a label.
      index: int32 [B], number of the image in its source (in the parent, for a subset); -1 for
        padding.
      weight: float32 [B], 1 for an image and 0 for padding, so that sums over a padded last batch
        are exact.
      crops: Further random crops of the same images, uint8 [B, h, w, C] each, for objectives with
        two views or multi-crop.
    """

    image: Any
    label: Any
    index: Any
    weight: Any
    crops: tuple[Any, ...] = ()
