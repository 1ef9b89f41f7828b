"""Supervised training and fine-tuning: the target is the label."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from occinv import schema
from occinv.data.batch import Batch
from occinv.losses.losses import cross_entropy
from occinv.models.heads import ClassifierHead
from occinv.models.vit import Features, ViT
from occinv.objectives.base import Axes, Objective, Params, State
from occinv.rng import split
from occinv.transforms.mixing import erase, mix
from occinv.transforms.view import View, normalize, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """Cross-entropy of the label, end to end; with `init_from` it is fine-tuning.

    Attributes:
      pooling: the `mean` patch token through a fresh norm (the paper), or the `class` token.
      label_smoothing: probability spread over all classes while training.
      mixup, cutmix: α of the share that an image keeps when it is mixed with another, by a blend or
        by a box, each half of the time where both are above 0.
      erase: probability of a box of noise in an image.
    """

    pooling: Literal["mean", "class"] = "mean"
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0

    framework: ClassVar[str] = "supervised"

    def __post_init__(self) -> None:
        if self.setting.num_classes < 2:
            raise schema.UserError(
                f"the training images have {self.setting.num_classes} classes, classification "
                "needs 2 or more: give a folder with a sub-folder for each class"
            )

    @property
    def axes(self) -> Axes:
        return Axes("crop", "none", "label", "cross-entropy")

    @property
    def couples_batch(self) -> bool:
        return bool(self.mixup or self.cutmix)

    @property
    def for_evaluation(self) -> Objective:
        return dataclasses.replace(self, label_smoothing=0.0, mixup=0.0, cutmix=0.0, erase=0.0)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0),)

    @property
    def encoder(self) -> ViT:
        """f; with mean pooling the norm comes after the mean, in the head."""
        return self.setting.encoder.clone(final_norm=self.pooling == "class")

    @property
    def head(self) -> ClassifierHead:
        """Pooling, norm and linear layer."""
        return ClassifierHead(self.setting.num_classes, self.pooling, self.setting.dtype)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, head_key = jax.random.split(key)
        tokens = jnp.zeros((1, 1 + self.encoder.num_patches, self.encoder.width))
        return {
            "encoder": self.init_encoder(encoder_key, encoder),
            "head": self.head.init(head_key, tokens)["params"],
        }, {}

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """The image as the host cropped it, with a part of it erased or another's."""
        erase_keys, mix_keys = split(keys, 2)
        pixels = erase(erase_keys, normalize(pixels), self.erase)
        mixed = mix(mix_keys, pixels, self.mixup, self.cutmix)
        seen = whole(mixed.pixels, self.encoder.num_patches)
        return (View(seen.pixels, seen.visible, seen.kept, mixed.share),)

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        del params, state, view, keys
        return batch.label

    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Smoothed cross-entropy, and whether the label was among the first 1 and 5.

        A mixed image has both labels, each with the weight of its share.
        """
        del state, view2
        logits = self.classify(params, z1)
        loss = cross_entropy(logits, z2, self.label_smoothing)
        if self.couples_batch:
            assert view1.share is not None
            of_partner = cross_entropy(logits, z2[::-1], self.label_smoothing)
            loss = view1.share * loss + (1 - view1.share) * of_partner
        return loss, hits(logits, z2)

    def classify(self, params: Params, z: Features) -> jax.Array:
        """Logits float32 [B, num_classes]."""
        return self.head.apply({"params": params["head"]}, z.tokens)  # type: ignore[return-value]


def hits(logits: jax.Array, label: jax.Array) -> dict[str, jax.Array]:
    """`top1` and `top5`, 0 or 1: whether `label` [B] is among the best of `logits` [B, classes]."""
    own = jnp.take_along_axis(logits, label[:, None], axis=1)
    better = (~(logits <= own)).sum(1)  # so that NaN counts as wrong
    return {f"top{best}": (better < best).astype(jnp.float32) for best in (1, 5)}
