"""The masking that BEiT, CAE and data2vec share: T1 removes rectangles of the jittered image."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from occinv.objectives.base import Objective
from occinv.rng import split
from occinv.schema import Count, Rate
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, rectangles_visible, visible_ids
from occinv.transforms.view import View, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectangleMasking(Objective):
    """Views of an image without rectangles of its patches, and of the whole image.

    Attributes:
      mask_ratio: The share of patches that T1 removes; a learned token replaces them.
      min_rectangle: The smallest area that a rectangle is drawn with, in patches.
      color: The jitter of the whole image before masking in training, or None.
    """

    mask_ratio: Rate = 75 / 196
    min_rectangle: Count = 16
    color: ColorJitter | None = ColorJitter(hue=0.0, probability=1.0, gray=0.0)

    def __post_init__(self) -> None:
        self.kept  # noqa: B018 (raises for an impossible ratio)

    @property
    def kept(self) -> int:
        """The number of patches that T1 keeps."""
        return kept_patches(self.setting.encoder.num_patches, self.mask_ratio)

    def describe(self) -> tuple[str, str]:
        """Describe T1 and T2 in words."""
        color = "" if self.color is None else ", color"
        return f"{self.mask_ratio:.0%} removed in rectangles{color}", f"identity{color}"

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """The jittered image without its removed patches, and the whole of it."""
        mask_rng, color_rng = split(rng, 2)
        if self.color is not None and self.setting.is_training:
            pixels = self.color(color_rng, pixels)
        encoder = self.setting.encoder
        visible = rectangles_visible(mask_rng, encoder.grid, self.kept, self.min_rectangle)
        return View(pixels, visible, self.kept), whole(pixels, encoder.num_patches)


def removed_ids(view: View) -> jax.Array:
    """Return int32 [B, N - kept]: the positions of the patches that a view lacks."""
    return visible_ids(~view.visible, view.visible.shape[1] - view.kept)


def removed_tokens(tokens: jax.Array, view: View) -> jax.Array:
    """Select from patch tokens [B, N, D] those that a view lacks: [B, N - kept, D]."""
    return jnp.take_along_axis(tokens, removed_ids(view)[..., None], axis=1)
