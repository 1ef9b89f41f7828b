"""CAE: f encodes visible patches alone; a regressor predicts the latents of the removed ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from occinv.models.regressor import Regressor
from occinv.objectives.base import Axes, Context, Networks, Terms
from occinv.objectives.beit import BEiT, token_loss
from occinv.objectives.rectangle_masking import removed_ids
from occinv.rng import fold
from occinv.schema import Depth, NonNegative, Rate
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import visible_ids
from occinv.transforms.view import View


class CAENetworks(Networks):
    """f, and the regressor with its decoder."""

    regressor: Regressor


@dataclasses.dataclass(frozen=True, kw_only=True)
class CAE(BEiT):
    """-log p(ids(x) | d(z)) + λ ‖z - stop_gradient(f(x ⊙ (1 - M)))‖² of removed patches.

    z are the latents that a regressor predicts from f(x ⊙ M), d a decoder of these alone.

    Attributes:
      align_weight: The weight λ of the alignment.
      regressor_depth: The number of blocks of the regressor; its width and heads are those of f.
      decoder_depth: The number of blocks of the decoder d; its width and heads are those of f.
    """

    mask_ratio: Rate = 0.5
    color: ColorJitter | None = None
    align_weight: NonNegative = 2.0
    regressor_depth: Depth = 4
    decoder_depth: Depth = 4

    @property
    def axes(self) -> Axes:
        first, _ = self.describe()
        target = f"{self.tokenizer['name']} ids, f without gradient"
        paper = "Chen et al. 2023, arXiv:2202.03026"
        measure = "cross-entropy, latent L2"
        return Axes(first, "the complement", target, measure, "reconstructive", paper, "mean")

    @property
    def networks(self) -> Networks:
        encoder = self.setting.encoder
        regressor = Regressor(
            grid=encoder.grid,
            num_ids=self.codebook.num_ids,
            heads=encoder.heads,
            regressor_depth=self.regressor_depth,
            decoder_depth=self.decoder_depth,
            drop_path=encoder.drop_path,
            layer_scale=encoder.layer_scale,
            dtype=self.setting.dtype,
            layout=encoder.layout,
        )
        return CAENetworks(encoder, regressor)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """Eq. (6): x ⊙ M and x ⊙ (1 - M)."""
        first, second = super().views(pixels, rng)
        return first, View(second.pixels, ~first.visible, second.kept - first.kept)

    def features(self, net: Any, views: tuple[View, ...], ctx: Context) -> Any:
        """z1: latents and logits of removed patches; z2: their latents by f, without gradient."""
        first, second = views
        context = net.encode(first, fold(ctx.rng, 0)).tokens[:, 1:]
        shown = visible_ids(first.visible, first.kept)
        predicted = net.regressor(context, shown, removed_ids(first), fold(ctx.rng, 2))
        latents = net.encode(second, fold(ctx.rng, 1)).tokens[:, 1:]
        return predicted, jax.lax.stop_gradient(latents)

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """Cross-entropy of the ids and, with weight λ, the mean squared error of the latents."""
        predicted, latents = z
        ids = self.codebook.ids(ctx.state["tokenizer"], views[1].pixels)
        ids = jnp.take_along_axis(ids, removed_ids(views[0]), axis=1)
        loss, metrics, _ = token_loss(predicted.logits, ids)
        alignment = jnp.square(predicted.latents - latents).mean((1, 2))
        return Terms(loss + self.align_weight * alignment, {**metrics, "alignment": alignment})
