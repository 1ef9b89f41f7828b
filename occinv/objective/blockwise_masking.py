"""What BEiT, CAE and data2vec share: T1 removes blocks of patches from the jittered image."""

from __future__ import annotations

import dataclasses

import jax

from occinv.encoder.vit import ViT
from occinv.objective.base import Objective
from occinv.transform.colour import ColourJitter
from occinv.transform.keys import split
from occinv.transform.masking import blockwise_visible, kept_patches, visible_ids
from occinv.transform.view import View, normalise, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockwiseMasking(Objective):
    """Views of an image without blocks of its patches, and of the whole of it.

    Attributes:
      mask_ratio: of patches that T1 removes; they enter f as a learnable token.
      smallest_block: in patches, of those that are removed at once.
      colour: the jitter of the whole image before all else, or None.
    """

    mask_ratio: float = 75 / 196
    smallest_block: int = 16
    colour: ColourJitter | None = ColourJitter(hue=0.0, probability=1.0, grey=0.0)

    def __post_init__(self) -> None:
        kept_patches(self.encoder.num_patches, self.mask_ratio)  # raises if it cannot be

    @property
    def occlusion(self) -> tuple[str, str]:
        """T1 and T2 in words."""
        colour = "" if self.colour is None else ", colour"
        return f"{self.mask_ratio:.0%} removed in blocks{colour}", f"identity{colour}"

    @property
    def for_evaluation(self) -> Objective:
        return dataclasses.replace(self, colour=None)

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
        mask_keys, colour_keys = split(keys, 2)
        if self.colour is not None:
            pixels = self.colour(colour_keys, pixels)
        count = self.encoder.num_patches
        visible = blockwise_visible(mask_keys, count, self.kept, self.smallest_block)
        image = normalise(pixels)
        return View(image, visible, self.kept), whole(image, count)

    def removed(self, view: View) -> jax.Array:
        """int32 [B, N - kept]: where the patches are that a view lacks."""
        return visible_ids(~view.visible, self.encoder.num_patches - view.kept)
