"""CAE: the encoder sees visible patches alone; a regressor tells the latents of the others."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from occinv.data.batch import Batch
from occinv.models.regressor import ContextRegressor, Prediction
from occinv.models.vit import ViT
from occinv.objectives.base import Axes, Params, State
from occinv.objectives.beit import BEiT, token_loss
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import visible_ids
from occinv.transforms.view import View, denormalize


class Truth(NamedTuple):
    """What there is to say of the removed patches."""

    latents: jax.Array  # float32 [B, R, D], by f, without gradient
    ids: jax.Array  # int32 [B, R]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CAE(BEiT):
    """-log p(ids(x) | d(z)) + λ ‖z - stop_gradient(f(x ⊙ (1 - M)))‖² of removed patches.

    z are the latents that a regressor makes of f(x ⊙ M), d a decoder of these alone.

    Attributes:
      align_weight: λ.
      regressor_depth, decoder_depth: blocks of each; as wide as f, with as many heads.
    """

    mask_ratio: float = 0.5
    color: ColorJitter | None = None
    align_weight: float = 2.0
    regressor_depth: int = 4
    decoder_depth: int = 4

    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2202.03026"

    @property
    def axes(self) -> Axes:
        first, _ = self.occlusion
        target = f"{self.tokenizer['name']} ids, f without gradient"
        return Axes(first, "the complement", target, "cross-entropy, latent L2")

    @property
    def encoder(self) -> ViT:
        """f, which never sees a removed patch."""
        return self.setting.encoder

    @property
    def regressor(self) -> ContextRegressor:
        """From f's tokens to latents and ids of what it has not seen."""
        encoder = self.encoder
        return ContextRegressor(
            num_patches=encoder.num_patches,
            num_ids=self.codebook.num_ids,
            heads=encoder.heads,
            regressor_depth=self.regressor_depth,
            decoder_depth=self.decoder_depth,
            drop_path=encoder.drop_path,
            layer_scale=encoder.layer_scale,
            dtype=self.setting.dtype,
            layout=encoder.layout,
        )

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, regressor_key = jax.random.split(key)
        context, where = jnp.zeros((1, 1, self.encoder.width)), jnp.zeros((1, 1), jnp.int32)
        return {
            "encoder": self.init_encoder(encoder_key, encoder),
            "regressor": self.regressor.init(regressor_key, context, where, where)["params"],
        }, {"tokenizer": self.codebook.init()}

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """x ⊙ M and x ⊙ (1 - M)."""
        first, _ = super().transform(pixels, keys)
        rest = self.encoder.num_patches - self.kept
        return first, View(first.pixels, ~first.visible, rest)

    def source(self, params: Params, view: View, keys: jax.Array | None = None) -> Prediction:
        """z1: what the regressor says of the patches that the view lacks."""
        tokens = self.encode(params, view, keys).tokens[:, 1:]
        shown = visible_ids(view.visible, view.kept)
        found: Any = self.regressor.apply(
            {"params": params["regressor"]}, tokens, shown, self.removed(view), keys
        )
        return found

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Truth:
        """f and the tokenizer, of the patches that are visible here; drop path acts, too."""
        ids = self.codebook.ids(state["tokenizer"], denormalize(view.pixels))
        shown = visible_ids(view.visible, view.kept)
        latents = self.encode(jax.lax.stop_gradient(params), view, keys).tokens[:, 1:]
        return Truth(latents, jnp.take_along_axis(ids, shown, axis=1))

    def measure(
        self, params: Params, state: State, z1: Any, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy of the ids and, with weight λ, the mean squared error of the latents."""
        loss, metrics = token_loss(z1.logits, z2.ids)
        alignment = jnp.square(z1.latents - z2.latents).mean((1, 2))
        return loss + self.align_weight * alignment, {**metrics, "alignment": alignment}
