"""DINO: every crop of an image predicts the output of a slow teacher for its two large crops."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from occinv.data.crop import Crop
from occinv.models.heads import PrototypeHead
from occinv.objectives.base import (
    FROZEN,
    Axes,
    Context,
    Networks,
    Objective,
    ParamGroup,
    Terms,
    mean_terms,
)
from occinv.objectives.ema import EMA, ema
from occinv.rng import fold, split
from occinv.schema import (
    Area,
    Count,
    Crops,
    Duration,
    Probability,
    Sizes,
    Temperature,
    UserError,
    Width,
)
from occinv.size import Size, divides, grid_of
from occinv.transforms.color import Appearance
from occinv.transforms.view import View, whole


class DINONetworks(Networks):
    """f, and the head with its prototypes."""

    head: PrototypeHead


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINO(Objective):
    """H(softmax((t - c) / τ_t), softmax(s / τ_s)) for every pair (large crop, other crop).

    t and s are the head's outputs for the class token by teacher and student. The teacher is an EMA
    copy of the student, c the running mean of t (`main_dino.py`, `DINOLoss` of the official code).

    Attributes:
      num_prototypes: The number of prototypes, the outputs of the head.
      head_hidden: The width of the hidden layers of the head.
      bottleneck: The width of the layer before the prototypes.
      local_crops: The number of small crops, besides the two large crops.
      local_size: Pixels a side of a small crop, or its height and width;
        `data.image_size` is that of a large crop.
      local_scale: Smallest and largest area of a small crop, as a share of the image;
        `data.crop_scale` is that of a large crop.
      student_temperature: The temperature τ_s of the student.
      teacher_temperature: The temperature τ_t of the teacher after its warm-up.
      first_teacher_temperature: The initial τ_t.
      warmup: The length of the warm-up of τ_t, epoch by epoch.
      momentum: The momentum of the teacher at the start; it grows to 1 along a cosine.
      center_momentum: The momentum of the center c.
      freeze_last_layer: How long the last layer is frozen.
      normalize_last_layer: Whether the prototypes keep length 1.
      first: The augmentation of the first large crop.
      second: The augmentation of the second large crop; it blurs less and solarizes.
      local: The augmentation of the small crops.
    """

    num_prototypes: Count = 65536
    head_hidden: Width = 2048
    bottleneck: Width = 256
    local_crops: Crops = 8
    local_size: Sizes = 96
    local_scale: tuple[Area, Area] = (0.05, 0.4)
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.04
    first_teacher_temperature: Temperature = 0.04
    warmup: Duration = Duration(epochs=0)
    momentum: Probability = 0.996
    center_momentum: Probability = 0.9
    freeze_last_layer: Duration = Duration(epochs=1)
    normalize_last_layer: bool = True
    first: Appearance = Appearance(blur=1.0)
    second: Appearance = Appearance(blur=0.1, solarize=0.2)
    local: Appearance = Appearance(blur=0.5)

    def __post_init__(self) -> None:
        check_size("local_size", self.local_size, self.setting.encoder.patch_size)

    @property
    def axes(self) -> Axes:
        t1 = f"2 + {self.local_crops} crops, color, blur"
        paper = "Caron et al. 2021, arXiv:2104.14294"
        return Axes(t1, "2 large crops", "EMA encoder", "centered cross-entropy", "siamese", paper)

    @property
    def crops(self) -> tuple[Crop, ...]:
        local = Crop(self.local_size, self.local_scale)
        return (Crop(self.setting.encoder.image_size), *(local for _ in range(self.local_crops)))

    @property
    def param_groups(self) -> dict[tuple[str, ...], ParamGroup]:
        frozen = ParamGroup(start=self.in_steps(self.freeze_last_layer))
        scale = FROZEN if self.normalize_last_layer else frozen
        return {("head", "last", "kernel"): frozen, ("head", "last", "scale"): scale}

    @property
    def state(self) -> dict[str, Any]:
        return {
            "target": EMA(("encoder", "head"), self.momentum, "cosine", lag=1),
            "center": jnp.zeros(self.num_prototypes),
        }

    @property
    def networks(self) -> DINONetworks:
        sizes = self.head_hidden, self.bottleneck, self.num_prototypes
        head = PrototypeHead(*sizes, self.normalize_last_layer, self.setting.dtype)
        return DINONetworks(self.setting.encoder, head)

    def in_steps(self, duration: Duration) -> int:
        """Return a duration in training steps."""
        return duration.in_steps(self.setting.batch_size, self.setting.num_images)

    def temperature(self, step: jax.Array) -> jax.Array:
        """Return τ_t at a step: constant within an epoch, and constant after `warmup`."""
        epoch_steps = max(1, self.in_steps(Duration(epochs=1)))
        epochs = self.in_steps(self.warmup) // epoch_steps
        done = jnp.minimum(step // epoch_steps, epochs).astype(jnp.float32) / max(1, epochs - 1)
        rise = self.teacher_temperature - self.first_teacher_temperature
        warm = self.first_teacher_temperature + rise * done
        return jnp.where(step // epoch_steps < epochs, warm, self.teacher_temperature)

    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        """Every crop, with its own colors."""
        augmentations = (self.first, self.second, *(self.local for _ in range(self.local_crops)))
        return augmented_views(augmentations, pixels, rng, self.setting.encoder.patch_size)

    def features(self, net: Any, views: tuple[View, ...], ctx: Context) -> Any:
        """Student outputs s of every crop, teacher outputs t of the large ones: [B, prototypes]."""
        student = tuple(
            net.head(net.encode(view, fold(ctx.rng, i)).tokens[:, 0])
            for i, view in enumerate(views)
        )
        target = ctx.target
        return student, tuple(target.head(target.encode(view).tokens[:, 0]) for view in views[:2])

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """The mean cross-entropy over pairs of different crops, and the updated center."""
        student, teacher = z
        pairs = [(s, t) for j, t in enumerate(teacher) for i, s in enumerate(student) if i != j]
        center = ctx.state["center"]
        terms = mean_terms([self.measure(s, t, center, ctx.step) for s, t in pairs])
        center = update_center(center, teacher, ctx.weight, self.center_momentum)
        return terms._replace(state={"center": center})

    def measure(self, s: jax.Array, t: jax.Array, center: jax.Array, step: jax.Array) -> Terms:
        """Cross-entropy of student and centered, sharpened teacher: [...] of [..., prototypes]."""
        teacher = jax.nn.softmax((t - center) / self.temperature(step))
        loss = optax.softmax_cross_entropy(s / self.student_temperature, teacher)
        entropy = optax.softmax_cross_entropy(jnp.log(jnp.maximum(teacher, 1e-30)), teacher)
        return Terms(loss, {"teacher_entropy": entropy})  # 0 or log(prototypes): collapse


def check_size(field: str, size: Size, patch_size: Size) -> None:
    """Raise UserError unless crops of `size` pixels, set by a field, consist of whole patches."""
    if not divides(patch_size, size):
        raise UserError(
            f"objective.{field}={size} is not divisible by encoder.patch_size={patch_size}"
        )


def augmented_views(
    augmentations: Sequence[Appearance],
    crops: Sequence[jax.Array],
    rng: jax.Array,
    patch_size: Size,
) -> tuple[View, ...]:
    """Return whole views of `crops` [B, h, w, C], each augmented by its own keys."""
    views = []
    for augment, crop, own in zip(augmentations, crops, split(rng, len(crops)), strict=True):
        rows, columns = grid_of((crop.shape[1], crop.shape[2]), patch_size)
        views.append(whole(augment(own, crop), rows * columns))
    return tuple(views)


def update_center(
    center: jax.Array, outputs: Sequence[jax.Array], weight: jax.Array, momentum: float
) -> jax.Array:
    """Return the center, updated by the mean of the teacher's outputs, [B, prototypes] each."""
    share = weight / weight.sum()
    return ema(center, sum(share @ logits for logits in outputs) / len(outputs), momentum)
