"""R-MAE, Eq. (8): MAE as a siamese method. MAE assumes d(f(T2 x)) = T2 x; here it is a penalty."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax

from occinv.losses.reconstruction import patch_distance
from occinv.objectives.base import Axes, Context, Objective, Terms
from occinv.objectives.mae import MAE, MAENetworks, describe
from occinv.rng import split
from occinv.schema import NonNegative, Rate
from occinv.transforms.masking import kept_patches, random_visible
from occinv.transforms.view import View, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMAE(MAE):
    """‖(d(f(T1 x)) - d(f(T2 x))) ⊙ (1 - M)‖² + λ ‖(d(f(T2 x)) - T2 x) ⊙ (1 - M)‖².

    This is the loss with the complement. Here M is the mask of the patches that T1 keeps, not the
    measure, and ‖·‖² is a mean. One encoder f and one decoder d serve both views, and gradients
    flow through both.

    Attributes:
      t2: `complement` of T1 (R-MAE); `independent`, drawn with `t2_mask_ratio` (R-MAE†): both terms
        are then taken on patches that T1 removes and T2 keeps; `identity` (R-MAE‡).
      t2_mask_ratio: The share of patches that an independent T2 removes.
      constraint_weight: The weight λ of the constraint.
      constraint_region: The patches of the second term under `identity`: `all`, so that d(f(T2 x))
        is a plain autoencoder, or those that T1 `removed`.
    """

    t2: Literal["complement", "independent", "identity"] = "complement"
    t2_mask_ratio: Rate = 0.25
    constraint_weight: NonNegative = 1.0
    constraint_region: Literal["all", "removed"] = "all"

    def __post_init__(self) -> None:
        count = self.setting.encoder.num_patches
        kept_patches(count, self.mask_ratio)  # raises for ratio 0: nothing would be compared
        if self.t2 == "independent":
            kept_patches(count, self.t2_mask_ratio)

    @property
    def axes(self) -> Axes:
        t2 = {
            "complement": "the complement",
            "independent": f"{self.t2_mask_ratio:.0%} removed",
            "identity": "identity",
        }[self.t2]
        t1 = describe(self.mask_ratio, self.cutmix, self.color)
        paper = "Kong and Zhang 2023, arXiv:2208.04164"
        return Axes(t1, t2, "same encoder", "decoder L2", "siamese", paper)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """T1 removes patches. T2 keeps the complement, another draw, or all of the target image."""
        count = self.setting.encoder.num_patches
        first_rng, second_rng = split(rng, 2)
        first, second = super().views(pixels, first_rng)
        if self.t2 == "independent":
            kept = kept_patches(count, self.t2_mask_ratio)
            second = View(second.pixels, random_visible(second_rng, count, kept), kept)
        elif self.t2 == "identity":
            second = whole(second.pixels, count)
        return first, second

    def features(self, net: MAENetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1 = f(T1 x) and z2 = f(T2 x); MAE encodes T1 alone."""
        return Objective.features(self, net, views, ctx)

    def loss(self, net: MAENetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """The distance of the decoded views, Eq. (5), + λ · the distance of d(f(T2 x)) and T2 x."""
        first, second = views
        z1, z2 = z
        decoded = net.decode(z1, first), net.decode(z2, second)
        removed = ~first.visible & second.visible  # removed by T1 and kept by T2
        is_autoencoder = self.t2 == "identity" and self.constraint_region == "all"
        region = second.visible if is_autoencoder else removed
        distance = patch_distance(*decoded, removed)
        constraint = patch_distance(decoded[1], self.patches(second), region)
        metrics = {"distance": distance, "constraint": constraint}
        return Terms(distance + self.constraint_weight * constraint, metrics)
