"""C-MAE, Eqs. (9) to (11): occlusion invariance measured by InfoNCE instead of a decoder."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from occinv import schema
from occinv.losses.chunked import chunked_info_nce
from occinv.losses.contrastive import Negatives, byol, cosine
from occinv.models.heads import HeadNorm, MlpHead
from occinv.models.vit import Features
from occinv.objectives.base import Axes, Context, Networks, Objective, Terms, mean_terms
from occinv.objectives.ema import EMA
from occinv.objectives.mae import describe
from occinv.rng import fold, split
from occinv.schema import Count
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, paint, random_visible
from occinv.transforms.mixing import mix
from occinv.transforms.view import View

Tokens = Literal["patch", "class", "mean", "patch+class"]


class CMAENetworks(Networks):
    """f, the projector p and the predictor q."""

    projector: MlpHead
    predictor: MlpHead
    tokens: Tokens = "patch"

    def project(self, z: Features) -> jax.Array:
        """Return p(z) of the tokens that the loss is taken on: float32 [B, T, head_out]."""
        tokens = {
            "patch": z.tokens[:, 1:],
            "class": z.tokens[:, :1],
            "mean": z.tokens[:, 1:].mean(1, keepdims=True),
            "patch+class": z.tokens,
        }[self.tokens]
        return self.projector(tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CMAE(Objective):
    """-log [exp(s(z1, z2)/τ) / Σ_j exp(s(z1, z'_j)/τ)], s(z, z') = cos(q(p(z)), p'(z')).

    z2 comes from an EMA copy of f and p. T1 and T2 are complementary masks, Eq. (6), each followed
    by its own color jitter. The choices that the paper leaves open are fields.

    Attributes:
      mask_ratio: The share of patches that T1 removes and T2 keeps; 0: both see the whole image.
      tokens: The tokens that the loss is taken on: each `patch` token, the `class` token, the
        `mean` of the patch tokens, or `patch+class`.
      similarity: `infonce`, or `byol`, which needs no negatives.
      negatives: z'_j: the same `position` of the other images, the other tokens of the same
        `image`, or all tokens of the `batch`.
      key_chunk: Keys per chunk; it bounds memory and does not change the loss. None: all keys.
      mask_token: Whether removed patches are replaced by a learned token or dropped.
      symmetric: Whether the loss is also taken with the two views swapped, and the two averaged.
      temperature: τ.
      momentum: The momentum of the EMA target.
      momentum_schedule: `constant`, or `cosine` from `momentum` to 1 at the end.
      head_hidden, head_out, head_norm: The size and norm of projector and predictor.
      color: The jitter after masking, or None.
      cutmix: α of CutMix before masking, drawn for each view; 0: none.
    """

    mask_ratio: float = 0.75
    tokens: Tokens = "patch"
    similarity: Literal["infonce", "byol"] = "infonce"
    negatives: Negatives = "position"
    key_chunk: Count | None = None
    mask_token: bool = True
    symmetric: bool = True
    temperature: float = 0.2
    momentum: float = 0.996
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    head_hidden: int = 2048
    head_out: int = 768
    head_norm: HeadNorm = "none"
    color: ColorJitter | None = ColorJitter()
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.mask_ratio != 0:
            kept_patches(self.setting.encoder.num_patches, self.mask_ratio)
        if self.mask_ratio and not self.mask_token and "patch" in self.tokens:
            raise schema.UserError(
                f"objective.tokens={self.tokens!r} with objective.mask_token=False: T1 and T2 "
                "share no patch to compare; use objective.tokens='mean' or 'class'"
            )
        has_one_token = self.tokens in ("class", "mean")
        if self.similarity == "infonce" and self.negatives == "image" and has_one_token:
            raise schema.UserError(
                f"objective.negatives='image' with objective.tokens={self.tokens!r}: an image with "
                "one token has no negatives; use objective.negatives='position'"
            )

    @property
    def axes(self) -> Axes:
        measure = f"{self.tokens} " + {"infonce": "InfoNCE", "byol": "BYOL"}[self.similarity]
        t1 = describe(self.mask_ratio, self.cutmix, self.color)
        t2 = t1.replace(f"{self.mask_ratio:.0%} removed", "the complement")
        paper = "Kong and Zhang 2023, arXiv:2208.04164"
        token: Any = "class" if "class" in self.tokens else "mean"
        return Axes(t1, t2, "EMA encoder", measure, "siamese", paper, token)

    @property
    def couples(self) -> Literal["nothing", "loss", "features"]:
        if self.head_norm == "batchnorm" or self.cutmix:
            return "features"
        contrasts = self.similarity == "infonce" and self.negatives != "image"
        return "loss" if contrasts else "nothing"

    @property
    def state(self) -> dict[str, Any]:
        return {"target": EMA(("encoder", "projector"), self.momentum, self.momentum_schedule)}

    @property
    def networks(self) -> CMAENetworks:
        has_token = self.mask_token and self.mask_ratio > 0
        encoder = self.setting.encoder.clone(mask_token=has_token)
        sizes = self.head_hidden, self.head_out, self.head_norm, self.setting.dtype
        return CMAENetworks(encoder, MlpHead(*sizes), MlpHead(*sizes), self.tokens)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """CutMix, the mask of Eq. (6), then color jitter; each view by its own keys."""
        encoder = self.setting.encoder
        count = encoder.num_patches
        mask_rng, *view_rngs = split(rng, 3)
        if self.mask_ratio:
            kept = kept_patches(count, self.mask_ratio)
            visible = random_visible(mask_rng, count, kept)
            halves = (visible, kept), (~visible, count - kept)
        else:
            halves = 2 * ((jnp.ones((len(pixels), count), bool), count),)

        def half(seen: jax.Array, kept: int, rng: jax.Array) -> View:
            image = mix(fold(rng, 1), pixels, mixup=0.0, cutmix=self.cutmix).pixels
            image = paint(image, seen, encoder.patch_size)
            return View(image if self.color is None else self.color(rng, image), seen, kept)

        first, second = (half(*each, rng) for each, rng in zip(halves, view_rngs, strict=True))
        return first, second

    def features(self, net: CMAENetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1 = q(p(f(T1 x))) and z2 = p'(f'(T2 x)), and the same of the swapped views."""
        pairs = ((0, 1), (1, 0)) if self.symmetric else ((0, 1),)
        return tuple(
            (
                net.predictor(net.project(net.encode(views[i], fold(ctx.rng, i)))),
                ctx.target.project(ctx.target.encode(views[j])),
            )
            for i, j in pairs
        )

    def loss(self, net: CMAENetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """Eq. (9), or BYOL's distance, averaged over the tokens."""
        return mean_terms([self.measure(*pair) for pair in z])

    def measure(self, z1: jax.Array, z2: jax.Array) -> Terms:
        """M(z1, z2) of tokens float32 [B, T, head_out]."""
        metrics = {"similarity": cosine(z1, z2).mean(1)}
        if self.similarity == "byol":
            return Terms(byol(z1, z2).mean(1), metrics)
        loss, agrees = chunked_info_nce(
            z1, z2, self.negatives, self.temperature, self.key_chunk, self.setting.mesh
        )
        metrics["agreement"] = agrees.mean(1)  # chance level: 1 / number of keys
        return Terms(loss.mean(1), metrics)
