"""Supervised training and fine-tuning: the target is the label."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax

from occinv import schema
from occinv.losses.classification import cross_entropy, hits
from occinv.models.heads import ClassifierHead
from occinv.objectives.base import Axes, Context, Networks, Objective, Setting, Terms
from occinv.rng import fold, split
from occinv.schema import NonNegative, Probability
from occinv.transforms.mixing import erase, mix
from occinv.transforms.view import View, whole


class ClassificationNetworks(Networks):
    """f, and the classifier: pooling, norm and linear layer."""

    head: ClassifierHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """Cross-entropy of the label, trained end to end; with `init_from` it is fine-tuning.

    Attributes:
      pooling: The `mean` patch token through a fresh norm (the paper), or the `class` token.
      label_smoothing: The probability that is spread over all classes in training.
      mixup: α of the share that an image keeps when it is blended with another in training; 0: no
        blending.
      cutmix: α of the share that an image keeps when a box of another is pasted into it in
        training; 0: none. If `mixup` is above 0, too, each is used with equal probability.
      erase: The probability that a box of an image is replaced by noise in training.
    """

    pooling: Literal["mean", "class"] = "mean"
    label_smoothing: Probability = 0.1
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    erase: Probability = 0.0

    def __post_init__(self) -> None:
        check_classes(self.setting, "classification")

    @property
    def axes(self) -> Axes:
        return Axes("crop", "none", "label", "cross-entropy", "supervised", token=self.pooling)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.setting.is_training and bool(self.mixup or self.cutmix)

    @property
    def couples(self) -> Literal["nothing", "features"]:
        return "features" if self.mixes else "nothing"

    @property
    def networks(self) -> ClassificationNetworks:
        # With mean pooling the norm follows the mean, in the head.
        encoder = self.setting.encoder.clone(final_norm=self.pooling == "class")
        setting = self.setting
        head = ClassifierHead(setting.num_classes, self.pooling, setting.dtype)
        return ClassificationNetworks(encoder, head)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """The image as the host cropped it; in training, erased and mixed."""
        view = whole(pixels, self.setting.encoder.num_patches)
        if not self.setting.is_training:
            return (view,)
        erase_rng, mix_rng = split(rng, 2)
        pixels = erase(erase_rng, pixels, self.erase)
        mixed = mix(mix_rng, pixels, self.mixup, self.cutmix)
        return (dataclasses.replace(view, pixels=mixed.pixels, share=mixed.share),)

    def features(self, net: ClassificationNetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1: logits float32 [B, num_classes]."""
        return net.head(net.encode(views[0], fold(ctx.rng, 0)).tokens)

    def loss(
        self, net: ClassificationNetworks, z: Any, views: tuple[View, ...], ctx: Context
    ) -> Terms:
        """Smoothed cross-entropy, and top-1 and top-5 accuracy.

        A mixed image has its own label and its partner's, weighted by their shares.
        """
        smoothing = self.label_smoothing if self.setting.is_training else 0.0
        loss = cross_entropy(z, ctx.label, smoothing)
        if self.mixes:
            share: Any = views[0].share
            of_partner = cross_entropy(z, ctx.label[::-1], smoothing)
            loss = share * loss + (1 - share) * of_partner
        return Terms(loss, hits(z, ctx.label))


def check_classes(setting: Setting, name: str) -> None:
    """Raise UserError unless the training images have at least two classes."""
    if setting.num_classes < 2:
        raise schema.UserError(
            f"the training images have {setting.num_classes} classes, {name} needs 2 or more; give "
            "a folder with a sub-folder for each class"
        )
