"""What BEiT, CAE and data2vec share: T1 removes blocks of patches from the jittered image."""

from __future__ import annotations

import dataclasses

import jax

from occinv.models.vit import ViT
from occinv.objectives.base import Objective
from occinv.rng import split
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, rectangles_visible, visible_ids
from occinv.transforms.view import View, normalize, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectangleMasking(Objective):
    """Views of an image without blocks of its patches, and of the whole of it.

    Attributes:
      mask_ratio: of patches that T1 removes; they enter f as a learnable token.
      min_rectangle: in patches, of those that are removed at once.
      color: the jitter of the whole image before all else, or None.
    """

    mask_ratio: float = 75 / 196
    min_rectangle: int = 16
    color: ColorJitter | None = ColorJitter(hue=0.0, probability=1.0, gray=0.0)

    def __post_init__(self) -> None:
        kept_patches(self.encoder.num_patches, self.mask_ratio)  # raises if it cannot be

    @property
    def occlusion(self) -> tuple[str, str]:
        """T1 and T2 in words."""
        color = "" if self.color is None else ", color"
        return f"{self.mask_ratio:.0%} removed in blocks{color}", f"identity{color}"

    @property
    def for_evaluation(self) -> Objective:
        return dataclasses.replace(self, color=None)

    @property
    def encoder(self) -> ViT:
        """f, with a learnable token for removed patches."""
        return self.setting.encoder.clone(mask_token=True)

    @property
    def kept(self) -> int:
        """How many patches T1 keeps."""
        return kept_patches(self.encoder.num_patches, self.mask_ratio)

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """The jittered image without its removed patches, and the whole of it."""
        mask_keys, color_keys = split(keys, 2)
        if self.color is not None:
            pixels = self.color(color_keys, pixels)
        count = self.encoder.num_patches
        visible = rectangles_visible(mask_keys, count, self.kept, self.min_rectangle)
        image = normalize(pixels)
        return View(image, visible, self.kept), whole(image, count)

    def removed(self, view: View) -> jax.Array:
        """int32 [B, N - kept]: where the patches are that a view lacks."""
        return visible_ids(~view.visible, self.encoder.num_patches - view.kept)
