"""iBOT: DINO, and the student also predicts the teacher's output for its removed patches."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.losses.reconstruction import mean_over
from occinv.objectives.base import Axes, Context, Terms, mean_terms
from occinv.objectives.dino import DINO, DINONetworks, update_center
from occinv.rng import fold, split, uniform
from occinv.schema import Count, Probability, Rate, UserError
from occinv.transforms.masking import rectangles_visible
from occinv.transforms.view import View, whole


class Logits(NamedTuple):
    """The head's outputs for a view, in float32.

    Attributes:
      of_class: [B, num_prototypes].
      of_patches: [B, N, num_prototypes]; of a small crop [B, 0, num_prototypes].
    """

    of_class: jax.Array
    of_patches: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class IBOT(DINO):
    """DINO's loss, and the same loss for the patches that the student lacks of a large crop.

    Class token and patches share one head; the patches have their own center (`iBOTLoss` of
    main_ibot.py).

    Attributes:
      mask_probability: The probability that patches of a large crop are removed at all.
      mask_ratio: The range that the share of removed patches is then drawn from.
      min_rectangle: The smallest area that a rectangle is drawn with, in patches.
    """

    num_prototypes: Count = 8192
    mask_probability: Probability = 0.5
    mask_ratio: tuple[Rate, Rate] = (0.1, 0.5)
    min_rectangle: Count = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.mask_ratio
        if not 0 <= low <= high < 1:
            raise UserError(f"objective.mask_ratio={low, high}, expected 0 <= low <= high < 1")

    @property
    def axes(self) -> Axes:
        dino, (low, high) = super().axes, self.mask_ratio
        return dino._replace(
            t1=f"{dino.t1}, {low:.0%} to {high:.0%} removed of {self.mask_probability:.0%}",
            measure=f"{dino.measure} of class token and patches",
            paper="Zhou et al. 2022, arXiv:2111.07832",
        )

    @property
    def state(self) -> dict[str, Any]:
        return {**super().state, "patch_center": jnp.zeros(self.num_prototypes)}

    @property
    def networks(self) -> DINONetworks:
        dino = super().networks
        encoder = dino.encoder.clone(mask_token=True, mask_token_init=nn.initializers.zeros)
        return dino.clone(encoder=encoder)

    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        """DINO's crops; rectangles of patches are removed from the large ones."""
        crop_rng, *mask_rngs = split(rng, 3)
        first, second, *local = super().views(pixels, crop_rng)
        large = (self.masked(*of_view) for of_view in zip((first, second), mask_rngs, strict=True))
        return (*large, *local)

    def masked(self, view: View, rng: jax.Array) -> View:
        """Remove patches of a large crop; `kept` is what the images that lack most have left."""
        count, (low, high) = self.setting.encoder.num_patches, self.mask_ratio
        chosen_rng, ratio_rng, rectangle_rng = split(rng, 3)
        is_chosen = uniform(chosen_rng) < self.mask_probability
        removed = jnp.where(is_chosen, uniform(ratio_rng, low, high) * count, 0).astype(jnp.int32)
        grid = self.setting.encoder.grid
        visible = rectangles_visible(rectangle_rng, grid, count - removed, self.min_rectangle)
        return View(view.pixels, visible, count - int(high * count))

    def features(self, net: Any, views: tuple[View, ...], ctx: Context) -> Any:
        """Student outputs of every crop, teacher outputs of the whole large crops, as Logits."""
        count = self.setting.encoder.num_patches

        def logits(net: Any, view: View, rng: jax.Array | None = None) -> Logits:
            tokens = net.encode(view, rng).tokens
            if view.visible.shape[1] != count:
                tokens = tokens[:, :1]
            out = net.head(tokens)
            return Logits(out[:, 0], out[:, 1:])

        student = tuple(logits(net, view, fold(ctx.rng, i)) for i, view in enumerate(views))
        large = (whole(view.pixels, count) for view in views[:2])
        return student, tuple(logits(ctx.target, view) for view in large)

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """DINO's loss of the class token, and the loss of each large crop's removed patches."""
        student, teacher = z
        classes = tuple(s.of_class for s in student), tuple(t.of_class for t in teacher)
        terms = super().loss(net, classes, views, ctx)
        center = ctx.state["patch_center"]
        patches = mean_terms(
            [
                self.measure_patches(s.of_patches, t.of_patches, view, center, ctx.step)
                for s, t, view in zip(student, teacher, views, strict=False)
            ]
        )
        metrics = {
            **terms.metrics,
            "class_loss": terms.loss,
            "patch_loss": patches.loss,
            "patch_teacher_entropy": patches.metrics["teacher_entropy"],
        }
        means = [t.of_patches.mean(1) for t in teacher]
        state = {
            **terms.state,
            "patch_center": update_center(center, means, ctx.weight, self.center_momentum),
        }
        return Terms(terms.loss + patches.loss, metrics, state)

    def measure_patches(
        self, s: jax.Array, t: jax.Array, view: View, center: jax.Array, step: jax.Array
    ) -> Terms:
        """`measure` over the patches that `view` lacks, and the teacher's entropy over all."""
        loss, metrics, _ = self.measure(s, t, center, step)
        entropy = metrics["teacher_entropy"].mean(1)
        return Terms(mean_over(loss, ~view.visible), {"teacher_entropy": entropy})
