"""data2vec: patches are removed in blocks, and a teacher's features of the whole are regressed."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.data.batch import Batch
from occinv.losses.losses import cosine, smooth_l1
from occinv.models.vit import TOKEN_INIT, Features
from occinv.objectives.base import Axes, Params, State
from occinv.objectives.ema import moved
from occinv.objectives.rectangle_masking import RectangleMasking
from occinv.schema import UserError
from occinv.transforms.view import View


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data2Vec(RectangleMasking):
    """Smoothed L1 of q(f(x ⊙ M)) to norm(mean_k norm(f'_k(x))), of the removed patches.

    f' is an EMA copy of f, f'_k the output of its k-th block, norm a layer norm without parameters,
    q one linear layer (`engine_for_cyclical.py` of the official code).

    Attributes:
      target_blocks: so many of the last blocks make the target.
      beta: where smoothed L1 turns from squared to absolute.
      momentum: of the EMA, which moves before the forward pass.
    """

    mask_ratio: float = 120 / 196
    target_blocks: int = 6
    beta: float = 2.0
    momentum: float = 0.9998

    paper: ClassVar[str] = "Baevski et al. 2022, arXiv:2202.03555"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.target_blocks <= self.encoder.depth:
            raise UserError(
                f"objective.target_blocks={self.target_blocks}, expected 1 to "
                f"{self.encoder.depth}, the blocks of the encoder"
            )
        if self.beta <= 0:
            raise UserError(f"objective.beta={self.beta}, expected a positive number")

    @property
    def axes(self) -> Axes:
        target = f"EMA encoder, mean of {self.target_blocks} blocks"
        return Axes(*self.occlusion, target, "smoothed L1")

    @property
    def predictor(self) -> nn.Dense:
        """q."""
        return nn.Dense(self.encoder.width, kernel_init=TOKEN_INIT, dtype=self.setting.dtype)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, predictor_key = jax.random.split(key)
        params = {
            "encoder": self.init_encoder(encoder_key, encoder),
            "predictor": self.predictor.init(predictor_key, jnp.zeros((1, self.encoder.width)))[
                "params"
            ],
        }
        return params, {"target": {"encoder": params["encoder"]}}

    def advance(self, params: Params, state: State, step: jax.Array) -> State:
        del step
        online = {"encoder": params["encoder"]}
        return {"target": moved(state["target"], online, self.momentum)}

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """The last blocks of f', through which no gradient flows: float32 [B, N, D]."""
        del params, batch, keys
        blocks = self.encode(state["target"], view).blocks[-self.target_blocks :, :, 1:]
        mean = jax.nn.standardize(blocks.astype(jnp.float32)).mean(0)
        return jax.lax.stop_gradient(jax.nn.standardize(mean))

    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Smoothed L1 over the removed patches, their cosine, and how far predictions spread.

        `spread`, their deviation over the patches of an image, goes to 0 where f collapses.
        """
        del state, view2
        removed = self.removed(view1)[..., None]
        tokens = jnp.take_along_axis(z1.tokens[:, 1:], removed, axis=1)
        predicted: Any = self.predictor.apply({"params": params["predictor"]}, tokens)
        predicted = predicted.astype(jnp.float32)
        truth = jnp.take_along_axis(z2, removed, axis=1)
        return smooth_l1(predicted, truth, self.beta).mean((1, 2)), {
            "similarity": cosine(predicted, truth).mean(1),
            "spread": predicted.std(1).mean(-1),
        }
