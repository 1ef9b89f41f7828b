"""C-MAE, Eqs. (9) to (11): occlusion invariance measured by InfoNCE instead of a decoder."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from occinv import schema
from occinv.data.batch import Batch
from occinv.losses.chunked import check_block, chunked_info_nce
from occinv.losses.losses import Negatives, byol, cosine
from occinv.models.heads import HeadNorm, MlpHead
from occinv.models.vit import Features, ViT
from occinv.objectives.base import Axes, Objective, Params, State, occlusion
from occinv.objectives.ema import cosine_momentum, moved
from occinv.rng import fold, split
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, paint, random_visible
from occinv.transforms.mixing import mix
from occinv.transforms.view import View, normalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class CMAE(Objective):
    """-log [exp(s(z1, z2)/τ) / Σ_j exp(s(z1, z'_j)/τ)], s(z, z') = cos(q(p(z)), p'(z')).

    z2 comes from an EMA copy of f and p. T1 and T2 are Eq. (6) followed by a color jitter of each
    half. The choices that the paper leaves open are fields.

    Attributes:
      mask_ratio: of patches that T1 removes and T2 keeps; 0: both see the whole image.
      tokens: what the loss is taken on: each `patch` token, the `class` token, the `mean` of the
        patch tokens, or `patch+class`.
      similarity: `infonce`, or `byol`, which needs no negatives.
      negatives: z'_j: the same `position` of the other images, the other tokens of the same
        `image`, or all tokens of the `batch`.
      block: how many keys a query meets at once, for less memory and the same loss; None: all.
      mask_token: whether removed patches enter the encoder as a learnable token or not at all.
      symmetric: whether the loss is also taken with the two views swapped, and the two averaged.
      temperature: τ.
      momentum: of the EMA target.
      momentum_schedule: `constant`, or `cosine` from `momentum` to 1 at the end.
      head_hidden, head_out, head_norm: of projector and predictor.
      color: the jitter that follows masking, or None.
      cutmix: α of the share that an image keeps when a box of another is pasted into it before
        masking, in each view by itself; 0: none.
    """

    mask_ratio: float = 0.75
    tokens: Literal["patch", "class", "mean", "patch+class"] = "patch"
    similarity: Literal["infonce", "byol"] = "infonce"
    negatives: Negatives = "position"
    block: int | None = None
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

    paper: ClassVar[str] = "Kong and Zhang 2023, arXiv:2208.04164"

    def __post_init__(self) -> None:
        check_block(self.block)
        if self.mask_ratio != 0:
            kept_patches(self.encoder.num_patches, self.mask_ratio)
        if self.mask_ratio and not self.mask_token and "patch" in self.tokens:
            raise schema.UserError(
                f"objective.tokens={self.tokens!r} with objective.mask_token=False: T1 and T2 "
                "share no patch to compare; use objective.tokens='mean' or 'class'"
            )
        if (
            self.similarity == "infonce"
            and self.negatives == "image"
            and self.tokens in ("class", "mean")
        ):
            raise schema.UserError(
                f"objective.negatives='image' with objective.tokens={self.tokens!r}: an image with "
                "one token has no negatives; use objective.negatives='position'"
            )

    @property
    def axes(self) -> Axes:
        measure = f"{self.tokens} " + {"infonce": "InfoNCE", "byol": "BYOL"}[self.similarity]
        t1 = occlusion(self.mask_ratio, self.cutmix, self.color)
        t2 = t1.replace(f"{self.mask_ratio:.0%} removed", "the complement")
        return Axes(t1, t2, "EMA encoder", measure)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return ((0, 1), (1, 0)) if self.symmetric else ((0, 1),)

    @property
    def couples_batch(self) -> bool:
        contrasts = self.similarity == "infonce" and self.negatives != "image"
        return contrasts or self.couples_before_measure

    @property
    def couples_before_measure(self) -> bool:
        return self.head_norm == "batchnorm" or bool(self.cutmix)

    @property
    def encoder(self) -> ViT:
        """f, with a learnable mask token if removed patches are to enter it."""
        return self.setting.encoder.clone(mask_token=self.mask_token and self.mask_ratio > 0)

    @property
    def head(self) -> MlpHead:
        """p, and q: two layers each."""
        return MlpHead(self.head_hidden, self.head_out, self.head_norm, self.setting.dtype)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        keys = jax.random.split(key, 3)
        params = {
            "encoder": self.init_encoder(keys[0], encoder),
            "projector": self.head.init(keys[1], jnp.zeros((1, 1, self.encoder.width)))["params"],
            "predictor": self.head.init(keys[2], jnp.zeros((1, 1, self.head_out)))["params"],
        }
        return params, {"target": {name: params[name] for name in ("encoder", "projector")}}

    def advance(self, params: Params, state: State, step: jax.Array) -> State:
        """target <- m · target + (1 - m) · online, before the forward pass as in MoCo v3."""
        momentum: Any = self.momentum
        if self.momentum_schedule == "cosine":
            momentum = cosine_momentum(self.momentum, step, self.setting.total_steps)
        online = {name: params[name] for name in state["target"]}
        return {"target": moved(state["target"], online, momentum)}

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """CutMix, Eq. (6), then the color jitter of each half by itself."""
        count, patch_size = self.encoder.num_patches, self.encoder.patch_size
        mask_keys, *view_keys = split(keys, 3)
        if self.mask_ratio:
            kept = kept_patches(count, self.mask_ratio)
            visible = random_visible(mask_keys, count, kept)
            halves = (visible, kept), (~visible, count - kept)
        else:
            halves = 2 * ((jnp.ones((len(pixels), count), bool), count),)

        def half(seen: jax.Array, kept: int, keys: jax.Array) -> View:
            image = mix(fold(keys, 1), pixels, mixup=0.0, cutmix=self.cutmix).pixels
            image = paint(image, seen, patch_size)
            image = image if self.color is None else self.color(keys, image)
            return View(normalize(image), seen, kept)

        first, second = (half(*each, keys) for each, keys in zip(halves, view_keys, strict=True))
        return first, second

    def source(self, params: Params, view: View, keys: jax.Array | None = None) -> jax.Array:
        """q(p(f(view))), float32 [B, T, head_out]."""
        projected = self.project(params, self.encode(params, view, keys))
        return self.head.apply({"params": params["predictor"]}, projected)  # type: ignore[return-value]

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """p'(f'(T2 x)) of the EMA copy, through which no gradient flows."""
        del params, batch, keys
        z = self.encode(state["target"], view)
        return jax.lax.stop_gradient(self.project(state["target"], z))

    def project(self, params: Params, z: Features) -> jax.Array:
        """p(z) of the tokens that the loss is taken on: [B, T, head_out]."""
        tokens = {
            "patch": z.tokens[:, 1:],
            "class": z.tokens[:, :1],
            "mean": z.tokens[:, 1:].mean(1, keepdims=True),
            "patch+class": z.tokens,
        }[self.tokens]
        return self.head.apply({"params": params["projector"]}, tokens)  # type: ignore[return-value]

    def measure(
        self, params: Params, state: State, z1: Any, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Eq. (9), or BYOL's distance, averaged over the tokens."""
        del params, state, view1, view2
        metrics = {"similarity": cosine(z1, z2).mean(1)}
        if self.similarity == "byol":
            return byol(z1, z2).mean(1), metrics
        loss, agrees = chunked_info_nce(
            z1, z2, self.negatives, self.temperature, self.block, self.setting.mesh
        )
        metrics["agreement"] = agrees.mean(1)  # chance: 1 in all keys
        return loss.mean(1), metrics
