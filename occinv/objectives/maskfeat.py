"""MaskFeat: rectangles of patches are removed, and their oriented gradients are predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.models.patches import patchify
from occinv.models.vit import TOKEN_INIT
from occinv.objectives.base import Axes, Context, Networks, Terms
from occinv.objectives.rectangle_masking import RectangleMasking, removed_tokens
from occinv.rng import fold
from occinv.schema import Count, Rate, UserError
from occinv.size import divides, grid_of, sides
from occinv.transforms.color import ColorJitter
from occinv.transforms.hog import BINS, hog
from occinv.transforms.view import View


class MaskFeatNetworks(Networks):
    """f, and a linear layer from tokens to the HOG of their patches."""

    head: nn.Dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFeat(RectangleMasking):
    """‖q(f(x ⊙ M)) - HOG(x)‖² of the removed patches, which a learned token replaces.

    q is one linear layer (`MaskMViT` of SlowFast's masked.py, with `PRED_HOG`).

    Attributes:
      cell_size: Pixels a side of HOG's cells, a divisor of the patch size; a smaller patch is one
        cell.
    """

    mask_ratio: Rate = 78 / 196
    min_rectangle: Count = 15
    color: ColorJitter | None = None
    cell_size: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        size = self.setting.encoder.patch_size
        if not divides(self.cell, size):
            fits = ", ".join(str(n) for n in range(1, min(sides(size)) + 1) if divides(n, size))
            raise UserError(
                f"objective.cell_size={self.cell_size} does not divide encoder.patch_size={size}, "
                f"expected one of {fits}"
            )

    @property
    def axes(self) -> Axes:
        paper = "Wei et al. 2022, arXiv:2112.09133"
        return Axes(*self.describe(), "HOG", "L2", "reconstructive", paper, "mean")

    @property
    def cell(self) -> int:
        """Pixels a side of a cell: `cell_size`, or the whole patch if that is smaller."""
        return min(self.cell_size, *sides(self.setting.encoder.patch_size))

    @property
    def networks(self) -> MaskFeatNetworks:
        encoder = self.setting.encoder.clone(mask_token=True)
        values = encoder.patch_values // self.cell**2 * BINS
        head = nn.Dense(values, kernel_init=TOKEN_INIT, dtype=self.setting.dtype)
        return MaskFeatNetworks(encoder, head)

    def features(self, net: MaskFeatNetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1: the patch tokens of f(T1 x). The target is the HOG of T2 x, which nothing encodes."""
        return net.encode(views[0], fold(ctx.rng, 0)).tokens[:, 1:]

    def loss(self, net: MaskFeatNetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """The mean squared difference over the removed patches."""
        first, second = views
        predicted = net.head(removed_tokens(z, first)).astype(jnp.float32)
        target = removed_tokens(self.target(second.pixels), first)
        return Terms(jnp.square(predicted - target).mean((1, 2)), {})

    def target(self, pixels: jax.Array) -> jax.Array:
        """Return the HOG of each patch: by row and column of its cells, by channel and by bin.

        Args:
          pixels: float32 [B, H, W, C] in [0, 1].

        Returns:
          float32 [B, N, 9 · P / cell²], where P are the values of a patch.
        """
        cells = grid_of(self.setting.encoder.patch_size, self.cell)
        return patchify(hog(pixels, self.cell), cells)
