"""MoCo v3: two augmented crops of an image, told apart from those of the other images."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from occinv.data.batch import Batch
from occinv.data.crop import Crop
from occinv.losses.chunked import check_block, chunked_info_nce
from occinv.losses.losses import cosine
from occinv.models.heads import BatchNormHead
from occinv.objectives.base import Axes, Objective, Params, State
from occinv.objectives.ema import cosine_momentum, moved
from occinv.rng import split
from occinv.transforms.color import Appearance
from occinv.transforms.view import View, normalize, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCoV3(Objective):
    """2τ · [L(q(p(f(T1 x))), p'(f'(T2 x))) + the same swapped], L the InfoNCE of the class token.

    f' and p' are EMA copies, which move before the forward pass. The negatives are the other images
    of the global batch (`moco/builder.py` of the official code).

    Attributes:
      temperature: τ.
      block: how many keys a query meets at once, for less memory and the same loss; None: all.
      momentum: of the EMA target at the start; it grows to 1 along a cosine.
      head_hidden, head_out: of projector (three layers) and predictor (two).
      freeze_patch_embed: whether the patch projection stays as it was drawn, for stability.
      first, second: how the two crops change after cropping; the official ones differ.
    """

    temperature: float = 0.2
    block: int | None = None
    momentum: float = 0.99
    head_hidden: int = 4096
    head_out: int = 256
    freeze_patch_embed: bool = True
    first: Appearance = Appearance(blur=1.0)
    second: Appearance = Appearance(blur=0.1, solarize=0.2)

    paper: ClassVar[str] = "Chen et al. 2021, arXiv:2104.02057"

    def __post_init__(self) -> None:
        check_block(self.block)

    @property
    def axes(self) -> Axes:
        return Axes("crop, color, blur", "another crop", "EMA encoder", "class InfoNCE")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return ((0, 1), (1, 0))

    @property
    def couples_batch(self) -> bool:
        return True

    @property
    def couples_before_measure(self) -> bool:
        return False  # the heads, which have batch norm, belong to `measure`

    @property
    def crops(self) -> tuple[Crop, ...]:
        return (Crop(self.encoder.image_size),)

    @property
    def learns_late(self) -> dict[tuple[str, ...], int | None]:
        late: dict[tuple[str, ...], int | None] = {}
        if self.freeze_patch_embed:
            late[("encoder", "patch_embed")] = None
        if not self.encoder.train_position:
            late[("encoder", "position")] = None  # else it would decay with all others
        return late

    @property
    def projector(self) -> BatchNormHead:
        """p."""
        return BatchNormHead(3, self.head_hidden, self.head_out, self.setting.dtype)

    @property
    def predictor(self) -> BatchNormHead:
        """q."""
        return BatchNormHead(2, self.head_hidden, self.head_out, self.setting.dtype)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        keys = jax.random.split(key, 3)
        params = {
            "encoder": self.init_encoder(keys[0], encoder),
            "projector": self.projector.init(keys[1], jnp.zeros((1, self.encoder.width)))["params"],
            "predictor": self.predictor.init(keys[2], jnp.zeros((1, self.head_out)))["params"],
        }
        return params, {"target": {name: params[name] for name in ("encoder", "projector")}}

    def advance(self, params: Params, state: State, step: jax.Array) -> State:
        momentum = cosine_momentum(self.momentum, step, self.setting.total_steps)
        online = {name: params[name] for name in state["target"]}
        return {"target": moved(state["target"], online, momentum)}

    def transform(self, pixels: Any, keys: jax.Array) -> tuple[View, ...]:
        """Each crop with its own colors."""
        return tuple(
            whole(normalize(change(of_view, crop)), self.encoder.num_patches)
            for change, crop, of_view in zip(
                (self.first, self.second), pixels, split(keys, 2), strict=True
            )
        )

    def source(self, params: Params, view: View, keys: jax.Array | None = None) -> jax.Array:
        """The class token of f(view): [B, D]."""
        if self.freeze_patch_embed:
            frozen = jax.lax.stop_gradient(params["encoder"]["patch_embed"])
            params = {**params, "encoder": {**params["encoder"], "patch_embed": frozen}}
        return self.encode(params, view, keys).tokens[:, 0]

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """The class token of f'(view), the EMA copy, through which no gradient flows."""
        del params, batch, keys
        return jax.lax.stop_gradient(self.encode(state["target"], view).tokens[:, 0])

    def project(self, params: Params, token: jax.Array) -> jax.Array:
        """p: [B, D] to [B, head_out]."""
        return self.projector.apply({"params": params["projector"]}, token)  # type: ignore[return-value]

    def measure(
        self, params: Params, state: State, z1: Any, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """InfoNCE over the images, times 2τ as published, times 2: theirs adds both directions."""
        del view1, view2
        projected = self.project(params, z1)
        query: Any = self.predictor.apply({"params": params["predictor"]}, projected)
        key = jax.lax.stop_gradient(self.project(state["target"], z2))
        loss, agrees = chunked_info_nce(
            query[:, None],
            key[:, None],
            "position",
            self.temperature,
            self.block,
            self.setting.mesh,
        )
        metrics = {"similarity": cosine(query, key), "agreement": agrees[:, 0]}
        return 2 * (2 * self.temperature) * loss[:, 0], metrics
