"""iBOT: DINO, and of the patches that the student lacks it says what the teacher says there."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from occinv.data.batch import Batch
from occinv.losses.losses import mean_over
from occinv.models.vit import ViT
from occinv.objectives.base import Axes, Params, State, Terms
from occinv.objectives.dino import DINO
from occinv.rng import split
from occinv.schema import UserError
from occinv.transforms.color import draw
from occinv.transforms.masking import rectangles_visible
from occinv.transforms.view import View, whole


class Logits(NamedTuple):
    """What a head says of a view, in float32."""

    of_class: jax.Array  # [B, num_prototypes]
    of_patches: jax.Array  # [B, N, num_prototypes]; of a small crop [B, 0, num_prototypes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IBOT(DINO):
    """DINO's loss, and the same of the patches that the student lacks of a large crop.

    One head says all of it; the patches have a center of their own (`iBOTLoss` of main_ibot.py).

    Attributes:
      mask_probability: of a large crop of an image to lack patches at all.
      mask_ratio: what share of them it then lacks is drawn from this range.
      min_rectangle: in patches, of those that are removed at once.
    """

    num_prototypes: int = 8192
    mask_probability: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    min_rectangle: int = 16

    paper: ClassVar[str] = "Zhou et al. 2022, arXiv:2111.07832"

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.mask_ratio
        if not 0 <= low <= high < 1:
            raise UserError(f"objective.mask_ratio={low, high}, expected 0 <= low <= high < 1")
        if not 0 <= self.mask_probability <= 1:
            raise UserError(
                f"objective.mask_probability={self.mask_probability}, expected a number from 0 to 1"
            )

    @property
    def axes(self) -> Axes:
        crops, t2, target, measure = super().axes
        low, high = self.mask_ratio
        t1 = f"{crops}, {low:.0%} to {high:.0%} removed of {self.mask_probability:.0%}"
        return Axes(t1, t2, target, f"{measure} of class token and patches")

    @property
    def encoder(self) -> ViT:
        """f, with a learnable token for removed patches."""
        return self.setting.encoder.clone(mask_token=True)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        params, state = super().init(key, encoder)
        return params, {**state, "patch_center": jnp.zeros(self.num_prototypes)}

    def transform(self, pixels: Any, keys: jax.Array) -> tuple[View, ...]:
        """DINO's crops, the large ones without blocks of their patches."""
        crop_keys, *mask_keys = split(keys, 3)
        views = super().transform(pixels, crop_keys)
        large = (
            self.masked(view, of_view) for view, of_view in zip(views, mask_keys, strict=False)
        )
        return (*large, *views[2:])

    def masked(self, view: View, keys: jax.Array) -> View:
        """A large crop; `kept` is what is left of the images that lack most."""
        count, (low, high) = self.encoder.num_patches, self.mask_ratio
        chosen_keys, ratio_keys, block_keys = split(keys, 3)
        is_chosen = draw(chosen_keys) < self.mask_probability
        removed = jnp.where(is_chosen, draw(ratio_keys, low, high) * count, 0).astype(jnp.int32)

        def one(key: jax.Array, kept: Any) -> jax.Array:
            return rectangles_visible(key[None], count, kept, self.min_rectangle)[0]

        visible = jax.vmap(one)(block_keys, count - removed)
        return View(view.pixels, visible, count - int(high * count))

    def source(self, params: Params, view: View, keys: jax.Array | None = None) -> Any:
        """s, as Logits; of a small crop only its class token is asked for."""
        tokens = self.encode(params, view, keys).tokens
        if view.visible.shape[1] != self.encoder.num_patches:
            tokens = tokens[:, :1]
        logits: Any = self.head.apply({"params": params["head"]}, tokens)
        return Logits(logits[:, 0], logits[:, 1:])

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """t of the whole crop."""
        image = whole(view.pixels, self.encoder.num_patches)
        return super().target(params, state, image, batch, keys)

    def measure(
        self, params: Params, state: State, z1: Any, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """DINO's, of the class token."""
        return super().measure(params, state, z1.of_class, z2.of_class, view1, view2)

    def measure_patches(
        self, state: State, z1: Logits, z2: Logits, view: View
    ) -> tuple[jax.Array, jax.Array]:
        """The same of the patches that `view` lacks, and the teacher's entropy on all: [B] each."""
        state = {**state, "center": state["patch_center"]}
        loss, metrics = super().measure({}, state, z1.of_patches, z2.of_patches, view, view)
        return mean_over(loss, ~view.visible), metrics["teacher_entropy"].mean(1)

    def compare(
        self,
        params: Params,
        state: State,
        views: tuple[View, ...],
        z1: dict[int, Any],
        z2: dict[int, Any],
        weight: jax.Array,
    ) -> Terms:
        """The class token's loss over pairs of crops, and that of each large crop's own patches."""
        terms = super().compare(params, state, views, z1, z2, weight)
        patches = [self.measure_patches(state, z1[j], z2[j], views[j]) for j in z2]
        loss, entropy = (sum(values) / len(patches) for values in zip(*patches, strict=True))
        metrics = {"class_loss": terms.loss, "patch_loss": loss, "patch_teacher_entropy": entropy}
        return Terms(terms.loss + loss, {**terms.metrics, **metrics}, terms.state)

    def observe(
        self, state: State, sources: dict[int, Any], targets: dict[int, Any], weight: jax.Array
    ) -> State:
        """Both centers move, that of the patches by the mean of all, removed or not."""
        classes = {j: logits.of_class for j, logits in targets.items()}
        patches = {j: logits.of_patches.mean(1) for j, logits in targets.items()}
        of_patches = super().observe({"center": state["patch_center"]}, {}, patches, weight)
        state = super().observe(state, {}, classes, weight)
        return {**state, "patch_center": of_patches["center"]}
