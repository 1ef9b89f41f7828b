"""MoCo v3: two augmented crops of an image are matched, contrasted with the other images."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax

from occinv.data.crop import Crop
from occinv.losses.chunked import agreement_by_chance, chunked_info_nce
from occinv.losses.contrastive import cosine
from occinv.models.heads import BatchNormHead
from occinv.objectives.base import (
    Axes,
    Context,
    Networks,
    Objective,
    Terms,
    check_contrast_group,
    mean_terms,
)
from occinv.objectives.dino import augmented_views
from occinv.objectives.ema import EMA
from occinv.rng import fold
from occinv.schema import Count, Probability, Several, Temperature, Width
from occinv.transforms.color import Appearance
from occinv.transforms.view import View


class MoCoNetworks(Networks):
    """f, the projector p and the predictor q."""

    projector: BatchNormHead
    predictor: BatchNormHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV3(Objective):
    """2τ · [L(q(p(f(T1 x))), p'(f'(T2 x))) + the same swapped], L the InfoNCE of the class token.

    f' and p' are EMA copies, which move before the forward pass. The negatives are the other images
    of the global batch (`moco/builder.py` of the official code).

    Attributes:
      temperature: The temperature τ of InfoNCE.
      key_chunk: Keys per chunk; it bounds memory and does not change the loss. None: all keys.
      contrast_group: Contrast each image only within groups of so many images of the batch. None:
        within the whole batch.
      momentum: The momentum of the EMA target at the start; it grows to 1 along a cosine.
      head_hidden: The width of the hidden layers of projector (three layers) and predictor (two).
      head_out: The width of the output of projector and predictor.
      first: The augmentation of the first crop.
      second: The augmentation of the second crop; it blurs less and solarizes.
    """

    temperature: Temperature = 0.2
    key_chunk: Count | None = None
    contrast_group: Several | None = None
    momentum: Probability = 0.99
    head_hidden: Width = 4096
    head_out: Width = 256
    first: Appearance = Appearance(blur=1.0)
    second: Appearance = Appearance(blur=0.1, solarize=0.2)

    def __post_init__(self) -> None:
        check_contrast_group(self.contrast_group, self.setting)

    @property
    def axes(self) -> Axes:
        paper = "Chen et al. 2021, arXiv:2104.02057"
        t1, t2 = "crop, color, blur", "another crop"
        return Axes(t1, t2, "EMA encoder", "class InfoNCE", "siamese", paper)

    @property
    def crops(self) -> tuple[Crop, ...]:
        return (Crop(self.setting.encoder.image_size),)

    @property
    def couples(self) -> Literal["loss"]:
        return "loss"  # the heads, whose batch norm couples images too, are part of the loss

    @property
    def state(self) -> dict[str, Any]:
        return {"target": EMA(("encoder", "projector"), self.momentum, "cosine")}

    @property
    def networks(self) -> MoCoNetworks:
        sizes = self.head_hidden, self.head_out, self.setting.dtype
        projector, predictor = (BatchNormHead(layers, *sizes) for layers in (3, 2))
        return MoCoNetworks(self.setting.encoder, projector, predictor)

    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        """Two crops, each with its own colors."""
        augmentations = self.first, self.second
        return augmented_views(augmentations, pixels, rng, self.setting.encoder.patch_size)

    def features(self, net: MoCoNetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """The class tokens of f and f' for both crops: [B, D] each."""
        online = tuple(net.encode(v, fold(ctx.rng, i)).tokens[:, 0] for i, v in enumerate(views))
        return online, tuple(ctx.target.encode(view).tokens[:, 0] for view in views)

    def loss(self, net: MoCoNetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """InfoNCE over the images, times 2τ as published; the sum of both directions."""
        online, target = z
        queries = [net.predictor(net.projector(token)) for token in online]
        keys = [ctx.target.projector(token) for token in target]
        return mean_terms([self.measure(queries[0], keys[1]), self.measure(queries[1], keys[0])])

    def measure(self, query: jax.Array, key: jax.Array) -> Terms:
        """Twice 2τ · InfoNCE of [B, head_out]: the mean of two directions is then their sum."""
        loss, agrees = chunked_info_nce(
            query[:, None],
            key[:, None],
            "position",
            self.temperature,
            self.key_chunk,
            self.setting.mesh,
            group=self.contrast_group,
        )
        by_chance = agreement_by_chance((len(query), 1), "position", group=self.contrast_group)
        metrics = {
            "similarity": cosine(query, key),
            "agreement": agrees[:, 0],
            "agreement_by_chance": by_chance[:, 0],
        }
        return Terms(2 * (2 * self.temperature) * loss[:, 0], metrics)
