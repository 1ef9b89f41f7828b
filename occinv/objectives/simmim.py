"""SimMIM: large squares are removed, and a linear layer predicts their pixels."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.models.patches import patchify
from occinv.models.vit import BEIT_INIT, TOKEN_INIT
from occinv.objectives.base import Axes, Context, Networks, Objective, Params, Reconstruction, Terms
from occinv.objectives.mae import pasted
from occinv.objectives.rectangle_masking import removed_tokens
from occinv.rng import fold
from occinv.schema import Count, Rate, UserError
from occinv.size import divides, size_text
from occinv.transforms.masking import kept_patches, squares_visible
from occinv.transforms.view import View, normalize


class SimMIMNetworks(Networks):
    """f, and a linear layer from tokens to the pixels of their patches."""

    decoder: nn.Dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimMIM(Objective):
    """|d(f(x ⊙ M)) - x| of the removed patches, which a learned token replaces.

    d is one linear layer, and x are pixels normalized by ImageNet's mean and standard deviation
    (`SimMIM` of models/simmim.py).

    Attributes:
      mask_ratio: The share of squares that T1 removes.
      mask_unit: Patches a side of a square, a divisor of the image's rows and columns of patches.
        The paper has squares of 32 pixels, which are 2 patches a side for ViT-B/16.
    """

    mask_ratio: Rate = 0.6
    mask_unit: Count = 2
    normalize_target: ClassVar[bool] = False  # an option of MAE, which the evaluator `psnr` reads

    def __post_init__(self) -> None:
        grid = self.setting.encoder.grid
        if not divides(self.mask_unit, grid):
            fits = ", ".join(str(n) for n in range(1, min(grid) + 1) if divides(n, grid))
            raise UserError(
                f"objective.mask_unit={self.mask_unit} does not divide the image of "
                f"{size_text(grid)} patches, expected one of {fits}"
            )
        self.kept_squares  # noqa: B018 (raises for an impossible ratio)

    @property
    def axes(self) -> Axes:
        t1, paper = f"{self.mask_ratio:.0%} removed in squares", "Xie et al. 2022, arXiv:2111.09886"
        return Axes(t1, "the complement", "pixels", "pixel L1", "reconstructive", paper, "mean")

    @property
    def kept_squares(self) -> int:
        """The number of squares that T1 keeps."""
        squares = self.setting.encoder.num_patches // self.mask_unit**2
        return kept_patches(squares, self.mask_ratio)

    @property
    def networks(self) -> SimMIMNetworks:
        encoder = self.setting.encoder.clone(mask_token=True, mask_token_init=BEIT_INIT)
        dtype = self.setting.dtype
        decoder = nn.Dense(encoder.patch_values, kernel_init=TOKEN_INIT, dtype=dtype)
        return SimMIMNetworks(encoder, decoder)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """T1(x) = x ⊙ M and T2(x) = x ⊙ (1 - M), where M are whole squares."""
        encoder, kept = self.setting.encoder, self.kept_squares * self.mask_unit**2
        visible = squares_visible(rng, encoder.grid, self.kept_squares, self.mask_unit)
        return View(pixels, visible, kept), View(pixels, ~visible, encoder.num_patches - kept)

    def features(self, net: SimMIMNetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1: the patch tokens of f(T1 x). The target is the pixels of T2 x."""
        return net.encode(views[0], fold(ctx.rng, 0)).tokens[:, 1:]

    def loss(self, net: SimMIMNetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """The mean absolute difference over the pixels of the removed patches."""
        first, second = views
        predicted = net.decoder(removed_tokens(z, first)).astype(jnp.float32)
        patches = patchify(normalize(second.pixels), self.setting.encoder.patch_size)
        return Terms(jnp.abs(predicted - removed_tokens(patches, first)).mean((1, 2)), {})

    def reconstruct(self, params: Params, pixels: jax.Array, visible: jax.Array) -> Reconstruction:
        """Decode the image from its visible patches, which are pasted.

        The evaluator `psnr` removes single patches at the same ratio, not squares.

        Args:
          params: Parameters of the networks.
          pixels: float32 [B, H, W, C] in [0, 1].
          visible: bool [B, N].
        """
        net = self.networks.bind({"params": params})
        predicted = net.decoder(net.encoder(pixels, visible).tokens[:, 1:])
        return pasted(predicted.astype(jnp.float32), pixels, visible, self.setting.encoder)
