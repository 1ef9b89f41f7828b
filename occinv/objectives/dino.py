"""DINO: small and large crops of an image predict what a slow teacher says of the large ones."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from occinv import schema
from occinv.data.batch import Batch
from occinv.data.crop import Crop
from occinv.losses.losses import soft_cross_entropy
from occinv.models.heads import PrototypeHead
from occinv.objectives.base import Axes, Objective, Params, State
from occinv.objectives.ema import cosine_momentum, moved
from occinv.rng import split
from occinv.schema import Duration
from occinv.transforms.color import Appearance
from occinv.transforms.view import View, normalize, whole

LAST = ("head", "last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINO(Objective):
    """H(softmax((t - c) / τ_t), softmax(s / τ_s)) of every pair of a global and another crop.

    t and s are what the heads of teacher and student say of the class token. The teacher is an EMA
    of the student, c the running mean of t (`main_dino.py`, `DINOLoss` of the official code).

    Attributes:
      num_prototypes, head_hidden, bottleneck: of the head.
      local_crops, local_size, local_scale: how many small crops, their pixels a side, their area.
        The two global crops are `data.image_size` and `data.crop_scale`.
      student_temperature, teacher_temperature: τ_s and τ_t.
      first_teacher_temperature, warmup: from which τ_t grows, epoch by epoch, and for how long.
      momentum: of the teacher at the start; it grows to 1 along a cosine.
      center_momentum: of c.
      freeze_last_layer: for so long the last layer does not learn.
      normalize_last_layer: whether its prototypes keep length 1.
      first, second, local: how the crops change after cropping; the official ones differ.
    """

    num_prototypes: int = 65536
    head_hidden: int = 2048
    bottleneck: int = 256
    local_crops: int = 8
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.4)
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    first_teacher_temperature: float = 0.04
    warmup: Duration = Duration(epochs=0)
    momentum: float = 0.996
    center_momentum: float = 0.9
    freeze_last_layer: Duration = Duration(epochs=1)
    normalize_last_layer: bool = True
    first: Appearance = Appearance(blur=1.0)
    second: Appearance = Appearance(blur=0.1, solarize=0.2)
    local: Appearance = Appearance(blur=0.5)

    paper: ClassVar[str] = "Caron et al. 2021, arXiv:2104.14294"

    def __post_init__(self) -> None:
        if self.local_size % self.encoder.patch_size:
            raise schema.UserError(
                f"objective.local_size={self.local_size} is not divisible by "
                f"encoder.patch_size={self.encoder.patch_size}"
            )

    @property
    def axes(self) -> Axes:
        t1 = f"2 + {self.local_crops} crops, color, blur"
        return Axes(t1, "2 large crops", "EMA encoder", "centered cross-entropy")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return tuple((i, j) for j in range(2) for i in range(2 + self.local_crops) if i != j)

    @property
    def crops(self) -> tuple[Crop, ...]:
        local = Crop(self.local_size, self.local_scale)
        return (Crop(self.encoder.image_size), *(local for _ in range(self.local_crops)))

    @property
    def learns_late(self) -> dict[tuple[str, ...], int | None]:
        late: dict[tuple[str, ...], int | None] = {}
        frozen = self.in_steps(self.freeze_last_layer)
        if frozen:
            late[(*LAST, "kernel")] = frozen
        if frozen or self.normalize_last_layer:
            late[(*LAST, "scale")] = None if self.normalize_last_layer else frozen
        return late

    @property
    def head(self) -> PrototypeHead:
        """The head of student and teacher."""
        return PrototypeHead(
            self.head_hidden,
            self.bottleneck,
            self.num_prototypes,
            self.normalize_last_layer,
            self.setting.dtype,
        )

    def in_steps(self, duration: Duration) -> int:
        """A duration as training steps."""
        return duration.in_steps(self.setting.batch_size, self.setting.num_images)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, head_key = jax.random.split(key)
        params = {
            "encoder": self.init_encoder(encoder_key, encoder),
            "head": self.head.init(head_key, jnp.zeros((1, self.encoder.width)))["params"],
        }
        return params, {
            "target": params,
            "center": jnp.zeros(self.num_prototypes),
            "temperature": jnp.float32(self.first_teacher_temperature),
        }

    def advance(self, params: Params, state: State, step: jax.Array) -> State:
        """The teacher follows the step before, with that step's momentum; τ_t is the epoch's."""
        before = jnp.maximum(step - 1, 0)
        momentum = cosine_momentum(self.momentum, before, self.setting.total_steps)
        target = moved(state["target"], params, momentum)
        return {**state, "target": target, "temperature": self.temperature_at(step)}

    def temperature_at(self, step: jax.Array) -> jax.Array:
        """τ_t at a step: constant within an epoch, and level after `warmup`."""
        an_epoch = max(1, self.in_steps(Duration(epochs=1)))
        epochs = self.in_steps(self.warmup) // an_epoch
        done = jnp.minimum(step // an_epoch, epochs).astype(jnp.float32) / max(1, epochs - 1)
        rise = self.teacher_temperature - self.first_teacher_temperature
        warm = self.first_teacher_temperature + rise * done
        return jnp.where(step // an_epoch < epochs, warm, self.teacher_temperature)

    def observe(
        self, state: State, sources: dict[int, Any], targets: dict[int, Any], weight: jax.Array
    ) -> State:
        """c moves by the mean of what the teacher has said of the batch."""
        del sources
        share = weight / weight.sum()
        seen = sum(share @ logits for logits in targets.values()) / len(targets)
        return {**state, "center": moved(state["center"], seen, self.center_momentum)}

    def transform(self, pixels: Any, keys: jax.Array) -> tuple[View, ...]:
        """Each crop with its own colors."""
        changes = (self.first, self.second, *(self.local for _ in range(self.local_crops)))
        size = self.encoder.patch_size
        return tuple(
            whole(normalize(change(of_view, crop)), (crop.shape[1] // size) ** 2)
            for change, crop, of_view in zip(
                changes, pixels, split(keys, len(changes)), strict=True
            )
        )

    def source(self, params: Params, view: View, keys: jax.Array | None = None) -> jax.Array:
        """s: float32 [B, num_prototypes]."""
        tokens = self.encode(params, view, keys).tokens
        return self.head.apply({"params": params["head"]}, tokens[:, 0])  # type: ignore[return-value]

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """t of the teacher, through which no gradient flows and no drop path acts."""
        del params, batch, keys
        return jax.lax.stop_gradient(self.source(state["target"], view))

    def measure(
        self, params: Params, state: State, z1: Any, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The cross-entropy of student and centered, sharpened teacher."""
        del params, view1, view2
        teacher = jax.nn.softmax((z2 - state["center"]) / state["temperature"])
        loss = soft_cross_entropy(z1 / self.student_temperature, teacher)
        entropy = soft_cross_entropy(jnp.log(jnp.maximum(teacher, 1e-30)), teacher)
        return loss, {"teacher_entropy": entropy}  # near 0 or log(prototypes): it has collapsed
