"""data2vec: rectangles are removed, and a teacher's features of the whole image are regressed."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.losses.contrastive import cosine
from occinv.losses.distillation import smooth_l1
from occinv.models.vit import BEIT_INIT
from occinv.objectives.base import Axes, Context, Networks, Terms
from occinv.objectives.ema import EMA
from occinv.objectives.rectangle_masking import RectangleMasking, removed_tokens
from occinv.rng import fold
from occinv.schema import Count, Positive, Probability, Rate, UserError
from occinv.transforms.view import View


class Data2VecNetworks(Networks):
    """f, and a linear predictor."""

    predictor: nn.Dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data2Vec(RectangleMasking):
    """Smoothed L1 of q(f(x ⊙ M)) to norm(mean_k norm(f'_k(x))), of the removed patches.

    f' is an EMA copy of f, f'_k the output of its k-th block, norm a layer norm without parameters,
    q one linear layer (`engine_for_cyclical.py` of the official code).

    Attributes:
      average_top_k: The number of last blocks whose mean is the target.
      beta: Where smoothed L1 turns from squared to absolute.
      momentum: The momentum of the EMA, which moves before the forward pass.
    """

    mask_ratio: Rate = 120 / 196
    average_top_k: Count = 6
    beta: Positive = 2.0
    momentum: Probability = 0.9998

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average_top_k > (depth := self.setting.encoder.depth):
            raise UserError(
                f"objective.average_top_k={self.average_top_k}, expected 1 to {depth}, the number "
                "of the encoder's blocks"
            )

    @property
    def axes(self) -> Axes:
        target = f"EMA encoder, mean of {self.average_top_k} blocks"
        paper = "Baevski et al. 2022, arXiv:2202.03555"
        return Axes(*self.describe(), target, "smoothed L1", "siamese", paper, "mean")

    @property
    def state(self) -> dict[str, Any]:
        return {"target": EMA(("encoder",), self.momentum)}

    @property
    def networks(self) -> Networks:
        encoder = self.setting.encoder.clone(mask_token=True, mask_token_init=BEIT_INIT)
        predictor = nn.Dense(encoder.width, kernel_init=BEIT_INIT, dtype=self.setting.dtype)
        return Data2VecNetworks(encoder, predictor)

    def features(self, net: Any, views: tuple[View, ...], ctx: Context) -> Any:
        """z1: f(T1 x); z2: the normalized mean of the last blocks of f'(x). float32 [B, N, D]."""
        blocks = ctx.target.encode(views[1]).blocks[-self.average_top_k :, :, 1:]
        mean = jax.nn.standardize(blocks.astype(jnp.float32)).mean(0)
        tokens = net.encode(views[0], fold(ctx.rng, 0)).tokens[:, 1:]
        return tokens, jax.nn.standardize(mean)

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """Smoothed L1 over the removed patches, their cosine, and the spread of predictions.

        `spread`, the deviation over the patches of an image, goes to 0 when f collapses.
        """
        tokens, target = z
        predicted = net.predictor(removed_tokens(tokens, views[0])).astype(jnp.float32)
        truth = removed_tokens(target, views[0])
        metrics = {
            "similarity": cosine(predicted, truth).mean(1),
            "spread": predicted.std(1).mean(-1),
        }
        return Terms(smooth_l1(predicted, truth, self.beta).mean((1, 2)), metrics)
