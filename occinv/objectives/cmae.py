"""C-MAE, Eqs. (9) to (11): occlusion invariance measured by InfoNCE instead of a decoder."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from occinv import schema
from occinv.losses.chunked import agreement_by_chance, chunked_info_nce
from occinv.losses.contrastive import Negatives, byol, cosine
from occinv.losses.reconstruction import mean_over
from occinv.models.decoder import restore
from occinv.models.heads import HeadNorm, MlpHead
from occinv.models.predictor import Predictor
from occinv.models.vit import Features
from occinv.objectives.base import (
    Axes,
    Context,
    Networks,
    Objective,
    Terms,
    check_contrast_group,
    mean_terms,
)
from occinv.objectives.ema import EMA
from occinv.objectives.mae import describe
from occinv.rng import fold, split
from occinv.schema import Count, NonNegative, Probability, Rate, Several, Temperature, Width
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, paint, random_visible, visible_ids
from occinv.transforms.mixing import mix
from occinv.transforms.view import View

Tokens = Literal["patch", "class", "mean", "patch+class"]


class CMAENetworks(Networks):
    """f, the projector p and the predictor q.

    q maps each token by itself, or is a transformer that predicts the tokens of missing patches.
    """

    projector: MlpHead
    predictor: MlpHead | Predictor
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

    def predict(self, z: jax.Array, view: View) -> jax.Array:
        """Return q(z) of the same tokens, or of the patches that the view lacks."""
        if isinstance(self.predictor, MlpHead):
            return self.predictor(z)
        shown = visible_ids(view.visible, view.kept)
        missing = visible_ids(~view.visible, view.visible.shape[1] - view.kept)
        return self.predictor(z, shown, missing[:, None])[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CMAE(Objective):
    """-log [exp(s(z1, z2)/τ) / Σ_j exp(s(z1, z'_j)/τ)], s(z, z') = cos(q(p(z)), p'(z')).

    z2 comes from an EMA copy of f and p. T1 and T2 are complementary masks, Eq. (6), each with its
    own color jitter. The choices that the paper leaves open are fields.

    Without a mask token, complementary views share no patch. Then the loss compares the mean or
    class token; or T2 is the identity, so that every token of T1 has a partner; or q predicts the
    tokens of the missing patches. A key that a view does not have is no negative.

    Attributes:
      mask_ratio: The share of patches that T1 removes and T2 keeps; 0: both see the whole image.
      tokens: The tokens that the loss is taken on: each `patch` token, the `class` token, the
        `mean` of the patch tokens, or `patch+class`.
      similarity: `infonce`, or `byol`, which needs no negatives.
      negatives: z'_j: the same `position` of the other images, the other tokens of the same
        `image`, or all tokens of the `batch`.
      key_chunk: Keys per chunk; it bounds memory and does not change the loss. None: all keys.
      contrast_group: Contrast each image only within groups of so many images of the batch, so that
        fewer negatives can be compared at an equal batch. None: within the whole batch.
      mask_token: Whether removed patches are replaced by a learned token or dropped.
      t2: The `complement` of T1, or the `identity`.
      predictor: q: an `mlp` of each token, or one transformer block with position `queries`, which
        predicts the tokens of the removed patches.
      symmetric: Whether the loss is also taken with the two views swapped, and the two averaged.
      temperature: The temperature τ of InfoNCE.
      momentum: The momentum of the EMA target.
      momentum_schedule: `constant`, or `cosine` from `momentum` to 1 at the end.
      head_hidden: The width of the hidden layer of projector and predictor.
      head_out: The width of the output of projector and predictor.
      head_norm: The norm in projector and predictor.
      color: The jitter of each view, or None.
      color_order: Whether the jitter is computed `before` masking, from the whole image, or
        `after` it, from the image with removed patches black, whose mean gray its contrast uses.
      cutmix: α of CutMix before masking, drawn for each view; 0: none.
    """

    mask_ratio: Rate = 0.75
    tokens: Tokens = "patch"
    similarity: Literal["infonce", "byol"] = "infonce"
    negatives: Negatives = "position"
    key_chunk: Count | None = None
    contrast_group: Several | None = None
    mask_token: bool = True
    t2: Literal["complement", "identity"] = "complement"
    predictor: Literal["mlp", "queries"] = "mlp"
    symmetric: bool = True
    temperature: Temperature = 0.2
    momentum: Probability = 0.996
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    head_hidden: Width = 2048
    head_out: Width = 768
    head_norm: HeadNorm = "none"
    color: ColorJitter | None = ColorJitter()
    color_order: Literal["before", "after"] = "before"
    cutmix: NonNegative = 0.0

    def __post_init__(self) -> None:
        check_contrast_group(self.contrast_group, self.setting)
        if self.contrast_group and (self.similarity == "byol" or self.negatives == "image"):
            raise schema.UserError(
                f"objective.contrast_group={self.contrast_group} selects negatives among other "
                "images; use it with objective.similarity='infonce' and "
                "objective.negatives='position' or 'batch'"
            )
        if self.mask_ratio != 0:
            kept_patches(self.setting.encoder.num_patches, self.mask_ratio)
        if self.predictor == "queries":
            self.check_queries()
        elif self.has_gaps and self.t2 == "complement":
            raise schema.UserError(
                f"objective.tokens={self.tokens!r} with objective.mask_token=False: T1 and T2 "
                "share no patch to compare; use objective.tokens='mean' or 'class', "
                "objective.t2='identity', or objective.predictor='queries'"
            )
        if self.similarity == "byol" and self.negatives != "position":
            raise schema.UserError(
                f"objective.negatives={self.negatives!r} with objective.similarity='byol', which "
                "has no negatives; set objective.similarity='infonce', or leave negatives out"
            )
        has_one_token = self.tokens in ("class", "mean")
        if self.similarity == "infonce" and self.negatives == "image" and has_one_token:
            raise schema.UserError(
                f"objective.negatives='image' with objective.tokens={self.tokens!r}: an image with "
                "one token has no negatives; use objective.negatives='position'"
            )

    def check_queries(self) -> None:
        """Refuse settings in which q has no missing tokens to predict, or impossible sizes."""
        if not self.has_gaps or self.tokens != "patch" or self.t2 != "complement":
            raise schema.UserError(
                "objective.predictor='queries' predicts the patch tokens that T1 lacks and T2 has: "
                "use objective.mask_token=False, objective.tokens='patch', "
                "objective.t2='complement' and a mask_ratio above 0"
            )
        heads = self.setting.encoder.heads
        if self.head_out % 4 or self.head_out % heads:
            raise schema.UserError(
                f"objective.head_out={self.head_out} with objective.predictor='queries', expected "
                f"a multiple of 4 and of the encoder's {heads} heads"
            )

    @property
    def has_gaps(self) -> bool:
        """Whether a view lacks tokens that the loss is taken on."""
        return self.mask_ratio > 0 and not self.mask_token and "patch" in self.tokens

    @property
    def axes(self) -> Axes:
        measure = f"{self.tokens} " + {"infonce": "InfoNCE", "byol": "BYOL"}[self.similarity]
        if self.negatives != "position":
            measure += f", negatives of the {self.negatives}"
        t1 = describe(self.mask_ratio, self.cutmix, self.color)
        t2 = {
            "complement": t1.replace(f"{self.mask_ratio:.0%} removed", "the complement"),
            "identity": describe(0, self.cutmix, self.color),
        }[self.t2]
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
        out, dtype = self.head_out, self.setting.dtype
        sizes = self.head_hidden, out, self.head_norm, dtype
        predictor: MlpHead | Predictor = MlpHead(*sizes)
        if self.predictor == "queries":
            blocks = {"width": out, "depth": 1, "heads": encoder.heads, "dtype": dtype}
            predictor = Predictor(encoder.grid, out, **blocks, layout=encoder.layout)
        return CMAENetworks(encoder, MlpHead(*sizes), predictor, self.tokens)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """CutMix, color jitter and the mask of Eq. (6); each view by its own keys."""
        encoder = self.setting.encoder
        count = encoder.num_patches
        mask_rng, *view_rngs = split(rng, 3)
        every = jnp.ones((len(pixels), count), bool), count
        if self.mask_ratio:
            kept = kept_patches(count, self.mask_ratio)
            visible = random_visible(mask_rng, count, kept)
            rest = ~visible, count - kept
            halves = (visible, kept), every if self.t2 == "identity" else rest
        else:
            halves = every, every

        def half(seen: jax.Array, kept: int, rng: jax.Array) -> View:
            cutmix_rng, color_rng = split(rng, 2)
            image = mix(cutmix_rng, pixels, mixup=0.0, cutmix=self.cutmix).pixels
            if self.color_order == "after":
                image = paint(image, seen, encoder.patch_size)
            if self.color is not None:
                image = self.color(color_rng, image)
            return View(image, seen, kept)

        first, second = (half(*each, rng) for each, rng in zip(halves, view_rngs, strict=True))
        return first, second

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The views of z1 and z2 in each direction."""
        return ((0, 1), (1, 0)) if self.symmetric else ((0, 1),)

    def features(self, net: CMAENetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1 = q(p(f(T1 x))) and z2 = p'(f'(T2 x)), and the same of the swapped views."""
        return tuple(
            (
                net.predict(net.project(net.encode(views[i], fold(ctx.rng, i))), views[i]),
                ctx.target.project(ctx.target.encode(views[j])),
            )
            for i, j in self.pairs
        )

    def loss(self, net: CMAENetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """Eq. (9), or BYOL's distance, averaged over the tokens."""
        return mean_terms(
            [
                self.measure(z1, z2, views[i], views[j])
                for (z1, z2), (i, j) in zip(z, self.pairs, strict=True)
            ]
        )

    def measure(self, z1: jax.Array, z2: jax.Array, first: View, second: View) -> Terms:
        """M(z1, z2) of tokens float32 [B, T, head_out], averaged over those that both have."""
        compared, keys = jnp.ones(z1.shape[:2], bool), None
        if self.has_gaps:
            given, keys = self.tokens_of(first), self.tokens_of(second)
            given = ~given if self.predictor == "queries" else given
            z1, z2 = restore(z1, given, jnp.float32(0)), restore(z2, keys, jnp.float32(0))
            compared = given & keys
        metrics = {"similarity": cosine(z1, z2)}
        if self.similarity == "byol":
            loss = byol(z1, z2)
        else:
            options = self.negatives, self.temperature, self.key_chunk, self.setting.mesh
            found = chunked_info_nce(z1, z2, *options, keys, self.contrast_group)
            loss, metrics["agreement"] = found
            metrics["agreement_by_chance"] = agreement_by_chance(
                z1.shape, self.negatives, keys, self.contrast_group
            )
        means = {name: mean_over(value, compared) for name, value in metrics.items()}
        return Terms(mean_over(loss, compared), means)

    def tokens_of(self, view: View) -> jax.Array:
        """Return bool [B, T]: the tokens of a view whose removed patches were dropped."""
        start = int(self.tokens == "patch+class")  # the class token, which every view has
        return jnp.pad(view.visible, ((0, 0), (start, 0)), constant_values=True)
