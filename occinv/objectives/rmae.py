"""R-MAE, Eq. (8): MAE as a siamese method, its nested constraint relaxed into a second term."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax

from occinv.data.batch import Batch
from occinv.losses.losses import patch_distance
from occinv.models.vit import Features
from occinv.objectives.base import Axes, Params, State, occlusion
from occinv.objectives.mae import MAE
from occinv.rng import split
from occinv.transforms.masking import kept_patches, random_visible
from occinv.transforms.view import View, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class RMAE(MAE):
    """‖(d(f(T1 x)) - d(f(T2 x))) ⊙ (1 - M)‖² + λ ‖(d(f(T2 x)) - T2 x) ⊙ (1 - M)‖².

    Both terms train f and d, with no stop-gradient, and share one decoder (φ = φ').

    Attributes:
      t2: `complement` of what T1 keeps (R-MAE); `independent`, drawn with `t2_mask_ratio` (R-MAE†),
        where both terms are taken on patches that T1 removed and T2 shows; `identity` (R-MAE‡).
      t2_mask_ratio: of the patches that an independent T2 removes.
      constraint_weight: λ.
      constraint_region: of the second term under `identity`: `all` patches, which makes it a plain
        autoencoder, or only those that T1 `removed`.
    """

    t2: Literal["complement", "independent", "identity"] = "complement"
    t2_mask_ratio: float = 0.25
    constraint_weight: float = 1.0
    constraint_region: Literal["all", "removed"] = "all"

    framework: ClassVar[str] = "siamese"
    paper: ClassVar[str] = "Kong and Zhang 2023, arXiv:2208.04164"

    def __post_init__(self) -> None:
        kept_patches(self.encoder.num_patches, self.mask_ratio)  # 0 would leave nothing to compare
        if self.t2 == "independent":
            kept_patches(self.encoder.num_patches, self.t2_mask_ratio)

    @property
    def axes(self) -> Axes:
        t2 = {
            "complement": "the complement",
            "independent": f"{self.t2_mask_ratio:.0%} removed",
            "identity": "identity",
        }[self.t2]
        t1 = occlusion(self.mask_ratio, self.cutmix, self.color)
        return Axes(t1, t2, "same encoder", "decoder L2")

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """T1 and T2 by the variant."""
        count = self.encoder.num_patches
        first_keys, second_keys = split(keys, 2)
        first, second = super().transform(pixels, first_keys)
        if self.t2 == "independent":
            kept = kept_patches(count, self.t2_mask_ratio)
            second = View(second.pixels, random_visible(second_keys, count, kept), kept)
        elif self.t2 == "identity":
            second = whole(second.pixels, count)
        return first, second

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """f(T2 x), by the same encoder."""
        del state, batch
        return self.encode(params, view, keys)

    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The distance of Eq. (5), and the relaxed constraint of Eq. (7) with weight λ."""
        del state
        removed = ~view1.visible & view2.visible  # 1 - M, where T2 can speak of it
        autoencoder = self.t2 == "identity" and self.constraint_region == "all"
        first = self.decode(params, z1, view1)
        second = self.decode(params, z2, view2)
        distance = patch_distance(first, second, removed)
        constraint = patch_distance(
            second, self.patches(view2), view2.visible if autoencoder else removed
        )
        metrics = {"distance": distance, "constraint": constraint}
        return distance + self.constraint_weight * constraint, metrics
