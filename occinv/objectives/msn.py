"""MSN: crops with few or small patches are assigned to the prototypes of another, whole crop."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from occinv.data.crop import Crop
from occinv.losses.assignment import mean_entropy_gap, sinkhorn
from occinv.models.heads import ProjectionHead, PrototypeCosines
from occinv.objectives.base import Axes, Context, Networks, Objective, Terms
from occinv.objectives.dino import augmented_views, check_size
from occinv.objectives.ema import EMA
from occinv.rng import fold, split
from occinv.schema import (
    Area,
    Count,
    Crops,
    NonNegative,
    Probability,
    Rate,
    Sizes,
    Temperature,
    Width,
)
from occinv.transforms.color import Appearance, ColorJitter
from occinv.transforms.masking import kept_patches, random_visible
from occinv.transforms.view import View


class MSNNetworks(Networks):
    """f, the projector p, and the prototypes."""

    head: ProjectionHead
    prototypes: PrototypeCosines


@dataclasses.dataclass(frozen=True, kw_only=True)
class MSN(Objective):
    """Mean over the anchors T1(x) of H(target, prediction), and λ · (log K - H(mean prediction)).

    A prediction is softmax(cos(p(f(T1 x)), prototypes) / τ). The target is that of T2(x) by EMA
    copies f' and p' and the same prototypes, to the power 1 / sharpening, and without gradient
    (`init_msn_loss` of losses.py). The mean prediction is over all anchors of the batch.

    The anchors are one large crop, from which single patches are removed, and small focal crops.
    Batch norm in p has the statistics of all crops of one size, as in the official code.

    Attributes:
      mask_ratio: The share of patches that the large anchor lacks.
      focal_crops: The number of focal crops, besides the two large crops.
      focal_size: Pixels a side of a focal crop, or its height and width;
        `data.image_size` is that of a large crop.
      focal_scale: Smallest and largest area of a focal crop, as a share of the image;
        `data.crop_scale` is that of a large crop.
      num_prototypes: The number K of prototypes.
      head_hidden: The width of the hidden layers of the projector p.
      head_out: The width of the output of p.
      temperature: The temperature τ of the student.
      sharpening: The temperature that sharpens targets.
      sinkhorn: Whether targets then use all prototypes equally often, by Sinkhorn-Knopp.
      me_max_weight: λ of the mean-entropy maximization.
      momentum: The momentum of the EMA target at the start; it grows to 1 linearly.
      appearance: The augmentation of every crop.
    """

    mask_ratio: Rate = 0.3
    focal_crops: Crops = 10
    focal_size: Sizes = 96
    focal_scale: tuple[Area, Area] = (0.05, 0.3)
    num_prototypes: Count = 1024
    head_hidden: Width = 2048
    head_out: Width = 256
    temperature: Temperature = 0.1
    sharpening: Temperature = 0.25
    sinkhorn: bool = True
    me_max_weight: NonNegative = 1.0
    momentum: Probability = 0.996
    appearance: Appearance = Appearance(ColorJitter(), blur=0.5)

    def __post_init__(self) -> None:
        check_size("focal_size", self.focal_size, self.setting.encoder.patch_size)
        kept_patches(self.setting.encoder.num_patches, self.mask_ratio)

    @property
    def axes(self) -> Axes:
        t1 = f"crop, {self.mask_ratio:.0%} removed, and {self.focal_crops} small crops"
        measure = "cross-entropy of prototypes, me-max"
        paper = "Assran et al. 2022, arXiv:2204.07141"
        return Axes(t1, "another crop", "EMA encoder", measure, "siamese", paper)

    @property
    def crops(self) -> tuple[Crop, ...]:
        focal = Crop(self.focal_size, self.focal_scale)
        return (*(focal for _ in range(self.focal_crops)), Crop(self.setting.encoder.image_size))

    @property
    def couples(self) -> Literal["loss"]:
        return "loss"  # batch norm in p, Sinkhorn-Knopp and the mean prediction are part of it

    @property
    def state(self) -> dict[str, Any]:
        return {"target": EMA(("encoder", "head"), self.momentum, "linear", lag=1)}

    @property
    def networks(self) -> MSNNetworks:
        head = ProjectionHead(self.head_hidden, self.head_out, self.setting.dtype)
        return MSNNetworks(self.setting.encoder, head, PrototypeCosines(self.num_prototypes))

    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        """The anchors: the masked large crop and the focal crops; then the target, a whole crop."""
        crop_rng, mask_rng = split(rng, 2)
        encoder, looks = self.setting.encoder, [self.appearance] * len(pixels)
        large, *others = augmented_views(looks, pixels, crop_rng, encoder.patch_size)
        kept = kept_patches(encoder.num_patches, self.mask_ratio)
        visible = random_visible(mask_rng, encoder.num_patches, kept)
        return View(large.pixels, visible, kept), *others

    def features(self, net: MSNNetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """The class tokens [B, V, D] of f for the V anchors of each size, and [B, D] of f'."""
        *anchors, whole = views
        tokens = [net.encode(v, fold(ctx.rng, i)).tokens[:, 0] for i, v in enumerate(anchors)]
        sizes = [group for group in (tokens[:1], tokens[1:]) if group]
        return [jnp.stack(group, 1) for group in sizes], ctx.target.encode(whole).tokens[:, 0]

    def loss(self, net: MSNNetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """The mean cross-entropy of an image's anchors, and the batch's me-max term for each."""
        anchors, target = z
        share = ctx.weight / ctx.weight.sum()
        assigned = net.prototypes(ctx.target.head(target, ctx.weight))
        assigned = jax.nn.log_softmax(assigned / (self.temperature * self.sharpening))
        if self.sinkhorn:
            assigned = sinkhorn(assigned, share)
        assigned = jax.lax.stop_gradient(jnp.exp(assigned))  # the prototypes have parameters, too
        cosines = [net.prototypes(net.head(tokens, ctx.weight)) for tokens in anchors]
        logits = jnp.concatenate(cosines, 1) / self.temperature
        loss = optax.softmax_cross_entropy(logits, assigned[:, None]).mean(1)
        gap = jnp.broadcast_to(mean_entropy_gap(jax.nn.softmax(logits), share), loss.shape)
        metrics = {
            "cross_entropy": loss,
            "me_max": gap,
            "teacher_entropy": jax.scipy.special.entr(assigned).sum(-1),
        }
        return Terms(loss + self.me_max_weight * gap, metrics)
