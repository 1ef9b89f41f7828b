"""I-JEPA: a teacher's features of target rectangles are predicted from the rest of the image."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from occinv.losses.contrastive import cosine
from occinv.losses.distillation import smooth_l1
from occinv.models.predictor import Predictor
from occinv.objectives.base import Axes, Context, Networks, Objective, Terms
from occinv.objectives.ema import EMA
from occinv.rng import fold
from occinv.schema import Count, Depth, Positive, Probability, UserError, Width
from occinv.size import Grid
from occinv.transforms.masking import visible_ids
from occinv.transforms.multiblock import Choice, multiblock, rectangle_size
from occinv.transforms.view import View, whole


@struct.dataclass
class ContextView(View):
    """The context that f sees, and the patches of the targets.

    Attributes:
      targets: int32 [B, T, R], the positions of the R patches of T targets.
    """

    targets: jax.Array | None = None


class IJEPANetworks(Networks):
    """f, and the narrow transformer q."""

    predictor: Predictor


@dataclasses.dataclass(frozen=True, kw_only=True)
class IJEPA(Objective):
    """Smoothed L1 of q(f(context)) to norm(f'(x)), of the patches of each target rectangle.

    f' is an EMA copy of f, norm a layer norm without parameters, q a narrow transformer that is
    given the target's positions (`src/train.py` of the official code).

    Attributes:
      num_targets: T, the rectangles that are predicted, each by itself; they may overlap.
      target_scale: The area of a target, as a share of the image.
      target_aspect: The rows of a target divided by its columns.
      context_scale: The share of the rectangle that f sees, before the targets are removed from it.
        The rectangle has the aspect of the image.
      context_choice: Which of the remaining patches f sees, if targets overlap and more remain than
        `kept`: the `first` in raster order, as in the official code, or a `random` choice.
      predictor_width: The width of the tokens in the predictor q.
      predictor_depth: The number of transformer blocks of q.
      predictor_heads: The number of attention heads of q.
      momentum: The momentum of the EMA at the start; it grows linearly to 1.
    """

    num_targets: Count = 4
    target_scale: Positive = 0.175
    target_aspect: Positive = 1.125
    context_scale: Positive = 0.925
    context_choice: Choice = "first"
    predictor_width: Width = 384
    predictor_depth: Depth = 6
    predictor_heads: Width = 12
    momentum: Probability = 0.996

    def __post_init__(self) -> None:
        if 0 in self.target_size or self.kept < 1:
            target, context = (
                " × ".join(map(str, s)) for s in (self.target_size, self.context_size)
            )
            raise UserError(
                f"objective.num_targets={self.num_targets} of {target} patches leave nothing of a "
                f"context of {context}; use fewer or smaller targets, or a smaller "
                "encoder.patch_size"
            )
        if self.predictor_width % 4 or self.predictor_width % self.predictor_heads:
            raise UserError(
                f"objective.predictor_width={self.predictor_width}, expected a multiple of 4 and "
                f"of objective.predictor_heads={self.predictor_heads}"
            )

    @property
    def axes(self) -> Axes:
        rows, columns = self.target_size
        target = f"EMA encoder, {self.num_targets} rectangles of {rows} × {columns}"
        paper = "Assran et al. 2023, arXiv:2301.08243"
        t1 = "a rectangle kept, the targets in it removed"
        return Axes(t1, "identity", target, "predictor, smoothed L1", "siamese", paper, "mean")

    @property
    def target_size(self) -> Grid:
        """Rows and columns of a target, the same in every image."""
        return rectangle_size(self.setting.encoder.grid, self.target_scale, self.target_aspect)

    @property
    def context_size(self) -> Grid:
        """Rows and columns of the context before the targets are removed from it."""
        rows, columns = self.setting.encoder.grid
        return rectangle_size((rows, columns), self.context_scale, rows / columns)

    @property
    def kept(self) -> int:
        """The number of patches that f sees: the rest where no targets overlap."""
        return math.prod(self.context_size) - self.num_targets * math.prod(self.target_size)

    @property
    def state(self) -> dict[str, Any]:
        return {"target": EMA(("encoder",), self.momentum, "linear", lag=1)}

    @property
    def networks(self) -> Networks:
        encoder = self.setting.encoder
        predictor = Predictor(
            grid=encoder.grid,
            out=encoder.width,
            width=self.predictor_width,
            depth=self.predictor_depth,
            heads=self.predictor_heads,
            dtype=self.setting.dtype,
            layout=encoder.layout,
        )
        return IJEPANetworks(encoder, predictor)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """The context, and the whole image."""
        encoder, sizes = self.setting.encoder, (self.context_size, self.target_size)
        visible, targets = multiblock(
            rng, encoder.grid, *sizes, self.num_targets, self.context_choice
        )
        seen = ContextView(pixels, visible, self.kept, targets=targets)
        return seen, whole(pixels, encoder.num_patches)

    def features(self, net: Any, views: Any, ctx: Context) -> Any:
        """z1: q(f(context)) of each target [B, T, R, D]; z2: norm(f'(x)) of the same patches."""
        context, image = views
        tokens = net.encode(context, fold(ctx.rng, 0)).tokens[:, 1:]
        shown = visible_ids(context.visible, context.kept)
        predicted = net.predictor(tokens, shown, context.targets)
        target = jax.nn.standardize(ctx.target.encode(image).tokens[:, 1:])
        return predicted, jnp.take_along_axis(target[:, None], context.targets[..., None], axis=2)

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """Smoothed L1 over the targets, their cosine, and the spread of predictions.

        `spread`, the deviation over the patches of an image, goes to 0 when f collapses.
        """
        predicted, truth = z
        metrics = {
            "similarity": cosine(predicted, truth).mean((1, 2)),
            "spread": predicted.std((1, 2)).mean(-1),
        }
        return Terms(smooth_l1(predicted, truth, beta=1.0).mean((1, 2, 3)), metrics)
