"""Linear probing: the accuracy of a linear layer on frozen features."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv import schema
from occinv.losses.classification import cross_entropy, hits
from occinv.models.attention import CrossAttention
from occinv.models.blocks import layer_norm
from occinv.models.heads import pool
from occinv.models.position import sincos
from occinv.models.vit import TOKEN_INIT
from occinv.objectives.base import FROZEN, Axes, Context, Networks, Objective, ParamGroup, Terms
from occinv.objectives.classification import check_classes
from occinv.objectives.ema import ema
from occinv.schema import Positive
from occinv.size import Grid
from occinv.transforms.view import View, whole

# BatchNorm1d(eps=1e-6); PyTorch's momentum of 0.1 is 0.9 here.
EPSILON, MOMENTUM = 1e-6, 0.9


class Heads(nn.Module):
    """Linear layers by name. All start with the same weights."""

    names: tuple[str, ...]
    num_classes: int

    @nn.compact
    def __call__(self, feature: jax.Array) -> dict[str, jax.Array]:
        """Map features [F, B, D] to logits float32 [B, num_classes] of each head.

        The first of F equal shares of the heads reads the first feature, and so on.
        """
        features = jnp.repeat(feature, len(self.names) // len(feature), axis=0)
        start = self.make_rng("params") if self.is_initializing() else None

        def same(key: jax.Array, *args: Any) -> jax.Array:
            # trunc_normal_(std=0.01) of timm cuts at ±2, which is 200 deviations: it cuts nothing.
            return nn.initializers.normal(0.01)(key if start is None else start, *args)

        return {
            name: nn.Dense(self.num_classes, kernel_init=same, dtype=jnp.float32, name=name)(own)
            for name, own in zip(self.names, features, strict=True)
        }


class AttentivePool(nn.Module):
    """One query for each head, which attends to the patch tokens: CAE's attentive probe.

    As `AttentiveBlock` of the official CAE: three norms and cross-attention without a residual;
    positions are added to the keys alone.
    """

    names: tuple[str, ...]
    heads: int
    grid: Grid

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map patch tokens float32 [B, N, D] to one feature for each head: [heads, B, D]."""
        batch, _, width = tokens.shape
        position = jnp.asarray(sincos(self.grid, width)[1:])

        def one(name: str) -> jax.Array:
            query = self.param(f"query_{name}", TOKEN_INIT, (1, 1, width))

            def norm(kind: str, x: jax.Array) -> jax.Array:
                return layer_norm(f"norm_{kind}_{name}", jnp.float32)(x)

            return CrossAttention(self.heads, jnp.float32, name=f"attention_{name}")(
                norm("q", jnp.broadcast_to(query, (batch, 1, width))),
                norm("k", tokens + position),
                norm("v", tokens),
            )[:, 0]

        return jnp.stack([one(name) for name in self.names])


class LinearProbeNetworks(Networks):
    """f, the attention that pools its tokens, if any, and the linear layers."""

    head: Heads
    pool: AttentivePool | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(Objective):
    """Cross-entropy of linear layers on batch-normalized features of a frozen encoder.

    The encoder is that of `init_from`; without it, random features are probed. The batch norm has
    no scale and bias (`main_linprobe.py` of the official MAE). Its statistics are those of the
    global batch, where the official ones are each device's own (512 images); evaluation uses
    running statistics.

    Every factor has its own head, which is trained at factor · learning rate as it would be alone,
    so that one pass over the images probes several learning rates. The best is chosen on the
    evaluation images: `top1` is the highest of these numbers, as with a rate tuned by hand.

    The class and the mean patch token are probed at once, each by heads of its own.

    Attributes:
      pooling: The feature of `top1`: the `class` token or the `mean` patch token, after the last
        norm; `attentive`: a trained query attends to the patch tokens (CAE), and nothing else is
        probed.
      lr_factors: The factor of each head.
    """

    pooling: Literal["class", "mean", "attentive"] = "class"
    lr_factors: tuple[Positive, ...] = (1.0,)

    def __post_init__(self) -> None:
        check_classes(self.setting, "a linear probe")
        if not self.setting.has_validation:
            raise schema.UserError(
                "a linear probe needs validation images, but the data has none; name some by "
                "data.eval_source, or the training images to measure on them all the same"
            )
        factors = self.lr_factors
        if not factors or len(self.heads) != len(self.tokens) * len(factors):
            raise schema.UserError(
                f"objective.lr_factors={factors}, expected one or more different numbers above 0"
            )

    @property
    def axes(self) -> Axes:
        measure = "cross-entropy of a linear layer"
        token: Any = "class" if self.pooling == "class" else "mean"
        return Axes("crop", "none", "label", measure, "supervised", token=token)

    @property
    def couples(self) -> Literal["nothing", "features"]:
        return "features" if self.setting.is_training else "nothing"

    @property
    def tokens(self) -> tuple[Any, ...]:
        """The features that are probed."""
        return ("attentive",) if self.pooling == "attentive" else ("class", "mean")

    @property
    def heads(self) -> dict[str, float]:
        """The factor of each head by its name, such as `class_0.3`."""
        return {f"{token}_{f:g}": f for token in self.tokens for f in self.lr_factors}

    @property
    def param_groups(self) -> dict[tuple[str, ...], ParamGroup]:
        groups: dict[tuple[str, ...], ParamGroup] = {("encoder",): FROZEN}
        for name, factor in self.heads.items():
            groups["head", name] = ParamGroup(factor)
            if self.pooling == "attentive":
                kinds = ("query", "attention", "norm_q", "norm_k", "norm_v")
                groups |= {("pool", f"{kind}_{name}"): ParamGroup(factor) for kind in kinds}
        return groups

    @property
    def state(self) -> dict[str, Any]:
        features = len(self.heads) if self.pooling == "attentive" else len(self.tokens)
        shape = features, self.setting.encoder.width
        return {"mean": jnp.zeros(shape), "variance": jnp.ones(shape)}

    @property
    def networks(self) -> LinearProbeNetworks:
        setting = self.setting
        heads = Heads(tuple(self.heads), setting.num_classes)
        pool = None
        if self.pooling == "attentive":
            pool = AttentivePool(tuple(self.heads), setting.encoder.heads, setting.encoder.grid)
        return LinearProbeNetworks(setting.encoder, heads, pool)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """The image as the host cropped it."""
        return (whole(pixels, self.setting.encoder.num_patches),)

    def features(self, net: LinearProbeNetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1 without gradient and drop path: its two tokens [B, 2, D], or its patches [B, N, D]."""
        tokens = jax.lax.stop_gradient(net.encode(views[0]).tokens)
        if self.pooling == "attentive":
            return tokens[:, 1:]
        return jnp.stack([pool(tokens, token) for token in self.tokens], axis=1)

    def loss(
        self, net: LinearProbeNetworks, z: Any, views: tuple[View, ...], ctx: Context
    ) -> Terms:
        """The mean cross-entropy of the heads, each head's accuracy, and the running statistics.

        The loss has the value of the mean and the gradient of the sum, so that each head has the
        gradient that it would have alone.
        """
        z, state = z.astype(jnp.float32), ctx.state
        z = z.swapaxes(0, 1) if net.pool is None else net.pool(z)
        mean, variance = state["mean"], state["variance"]
        if self.setting.is_training:
            mean, variance, count = z.mean(-2), z.var(-2), z.shape[-2]
            unbiased = variance * (count / max(1, count - 1))  # as PyTorch's running variance
            state = ema(state, {"mean": mean, "variance": unbiased}, MOMENTUM)
        scale = jax.lax.rsqrt(variance + EPSILON)
        logits = net.head((z - mean[..., None, :]) * scale[..., None, :])
        losses = [cross_entropy(logits[name], ctx.label, 0.0) for name in self.heads]
        metrics = {
            f"{best}_at_{name}": hit
            for name in self.heads
            for best, hit in hits(logits[name], ctx.label).items()
        }
        total = jnp.sum(jnp.stack(losses), 0)
        loss = total + jax.lax.stop_gradient(total / len(losses) - total)
        return Terms(loss, metrics, state)

    def summarize(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Add the accuracy of the best head of each feature, and `lr_factor` of `pooling`'s."""

        def best_of(token: str) -> str:
            names = (f"{token}_{factor:g}" for factor in self.lr_factors)
            return max(names, key=lambda name: metrics[f"top1_at_{name}"])

        best = best_of(self.pooling)
        return {
            **metrics,
            **{f"top1_{token}": metrics[f"top1_at_{best_of(token)}"] for token in self.tokens},
            "top1": metrics[f"top1_at_{best}"],
            "top5": metrics[f"top5_at_{best}"],
            "lr_factor": self.heads[best],
        }
