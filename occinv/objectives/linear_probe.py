"""Linear probing: how well a linear layer on frozen features tells classes apart."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv import schema
from occinv.data.batch import Batch
from occinv.losses.losses import cross_entropy
from occinv.objectives.base import Axes, Objective, Params, State
from occinv.objectives.classification import hits
from occinv.objectives.ema import moved
from occinv.transforms.view import View, normalize, whole

EPSILON, MOMENTUM = 1e-6, 0.9  # BatchNorm1d(eps=1e-6), and its momentum of 0.1 the other way round


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Objective):
    """Cross-entropy of linear layers on batch-normalized features of an encoder that stays.

    The encoder is that of `init_from`; without it, random features are probed. The batch norm has
    no scale and bias (`main_linprobe.py` of the official MAE). Its statistics are those of the
    global batch, where the official ones are each device's own (512 images); evaluation takes the
    running ones, which are state.

    Every factor has a head of its own. It learns at factor · learning rate as it would alone, so
    that one pass over the images probes several rates. The best is chosen on the images of the
    evaluation itself: `top1` is the highest of these numbers, as it is with a rate tuned by hand.

    Attributes:
      pooling: the feature: the `class` token, or the `mean` patch token, after the last norm.
      lr_factors: of the heads.
    """

    pooling: Literal["class", "mean"] = "class"
    lr_factors: tuple[float, ...] = (1.0,)

    framework: ClassVar[str] = "supervised"

    def __post_init__(self) -> None:
        if self.setting.num_classes < 2:
            raise schema.UserError(
                f"the training images have {self.setting.num_classes} classes, a linear probe "
                "needs 2 or more: give a folder with a sub-folder for each class"
            )
        factors = self.lr_factors
        in_range = all(0 < factor < float("inf") for factor in factors)
        if not (factors and in_range and len(self.heads) == len(factors)):
            raise schema.UserError(
                f"objective.lr_factors={factors}, expected one or more different numbers above 0"
            )

    @property
    def axes(self) -> Axes:
        return Axes("crop", "none", "label", "cross-entropy of a linear layer")

    @property
    def couples_batch(self) -> bool:
        return True

    @property
    def for_evaluation(self) -> Objective:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return EvaluatedProbe(**fields)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0),)

    @property
    def learns_late(self) -> dict[tuple[str, ...], int | None]:
        return {("encoder",): None}

    @property
    def heads(self) -> dict[str, float]:
        """The factor of each head by its name."""
        return {f"{factor:g}": factor for factor in self.lr_factors}

    @property
    def rate_factors(self) -> dict[tuple[str, ...], float]:
        return {("head", name): factor for name, factor in self.heads.items()}

    @property
    def linear(self) -> nn.Dense:
        """A head."""
        # trunc_normal_(std=0.01) of timm cuts at ±2, which is 200 deviations: it cuts nothing.
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.setting.num_classes, kernel_init=init, dtype=self.setting.dtype)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, head_key = jax.random.split(key)
        width = self.encoder.width
        head = self.linear.init(head_key, jnp.zeros((1, width)))["params"]
        params = {
            "encoder": self.init_encoder(encoder_key, encoder),
            "head": dict.fromkeys(self.heads, head),  # all start alike
        }
        return params, {"mean": jnp.zeros(width), "variance": jnp.ones(width)}

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """The image as the host cropped it."""
        del keys
        return (whole(normalize(pixels), self.encoder.num_patches),)

    def source(self, params: Params, view: View, keys: jax.Array | None = None) -> jax.Array:
        """The feature, float32 [B, D], through which no gradient flows; no drop path acts."""
        del keys
        tokens = self.encode(params, view).tokens
        feature = tokens[:, 0] if self.pooling == "class" else tokens[:, 1:].mean(1)
        return jax.lax.stop_gradient(feature)

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        del params, state, view, keys
        return batch.label

    def statistics(self, state: State, feature: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance [D] that features [B, D] are normalized by: their own."""
        del state
        return feature.mean(0), feature.var(0)

    def observe(
        self, state: State, sources: dict[int, Any], targets: dict[int, Any], weight: jax.Array
    ) -> State:
        """The running statistics move by a tenth; the variance is the unbiased one (PyTorch)."""
        del targets, weight
        feature = sources[0]
        count = feature.shape[0]
        seen = {"mean": feature.mean(0), "variance": feature.var(0) * (count / max(1, count - 1))}
        return moved(state, seen, MOMENTUM)

    def measure(
        self, params: Params, state: State, z1: Any, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean cross-entropy of the heads, and each head's top1 and top5.

        The loss has the value of the mean and the slope of the sum, so that each head has the
        gradient that it would have alone.
        """
        del view1, view2
        mean, variance = self.statistics(state, z1)
        feature = (z1 - mean) * jax.lax.rsqrt(variance + EPSILON)
        losses: list[jax.Array] = []
        metrics: dict[str, jax.Array] = {}
        for name in self.heads:
            logits = self.linear.apply({"params": params["head"][name]}, feature)
            logits = logits.astype(jnp.float32)  # type: ignore[union-attr]
            losses.append(cross_entropy(logits, z2, 0.0))
            metrics |= {f"{best}_at_{name}": hit for best, hit in hits(logits, z2).items()}
        total = jnp.sum(jnp.stack(losses), 0)
        return total + jax.lax.stop_gradient(total / len(losses) - total), metrics

    def summarize(self, metrics: dict[str, float]) -> dict[str, float]:
        """Also `top1`, `top5` and `lr_factor` of the head with the highest top1 of all."""
        best = max(self.heads, key=lambda name: metrics[f"top1_at_{name}"])
        return {
            **metrics,
            "top1": metrics[f"top1_at_{best}"],
            "top5": metrics[f"top5_at_{best}"],
            "lr_factor": self.heads[best],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedProbe(LinearProbe):
    """A probe that normalizes by the running statistics: no image's result depends on others."""

    @property
    def couples_batch(self) -> bool:
        return False

    def statistics(self, state: State, feature: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The running ones."""
        del feature
        return state["mean"], state["variance"]
