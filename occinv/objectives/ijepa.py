"""I-JEPA: from one block of an image's patches, a teacher's features of other blocks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from occinv.data.batch import Batch
from occinv.losses.losses import cosine, smooth_l1
from occinv.models.predictor import BlockPredictor
from occinv.models.vit import Features
from occinv.objectives.base import Axes, Objective, Params, State
from occinv.objectives.ema import moved
from occinv.schema import UserError
from occinv.transforms.masking import visible_ids
from occinv.transforms.multiblock import block_size, multiblock
from occinv.transforms.view import View, normalize, whole


@struct.dataclass
class Context(View):
    """What f sees, and where the patches of the target blocks are, int32 [B, T, R]."""

    blocks: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class IJEPA(Objective):
    """Smoothed L1 of q(f(context)) to norm(f'(x)), of the patches of each target block.

    f' is an EMA copy of f, norm a layer norm without parameters, q a narrow transformer that is
    told where the target block lies (`src/train.py` of the official code).

    Attributes:
      target_blocks: T, blocks that are predicted, each by itself; they may overlap.
      target_scale, target_aspect: of a target block: its share of the image, height by width.
      context_scale: share of the image of the square that f sees, less the target blocks.
      predictor_width, predictor_depth, predictor_heads: of q.
      momentum: of the EMA at the start; it grows to 1 along a line.
    """

    target_blocks: int = 4
    target_scale: float = 0.175
    target_aspect: float = 1.125
    context_scale: float = 0.925
    predictor_width: int = 384
    predictor_depth: int = 6
    predictor_heads: int = 12
    momentum: float = 0.996

    paper: ClassVar[str] = "Assran et al. 2023, arXiv:2301.08243"

    def __post_init__(self) -> None:
        for name in ("target_scale", "target_aspect", "context_scale", "target_blocks"):
            if getattr(self, name) <= 0:
                raise UserError(f"objective.{name}={getattr(self, name)}, expected more than 0")
        if 0 in self.target_size or self.kept < 1:
            target, context = (
                " × ".join(map(str, s)) for s in (self.target_size, self.context_size)
            )
            raise UserError(
                f"objective.target_blocks={self.target_blocks} of {target} patches in a context of "
                f"{context}, expected a patch in each block and one more in the context: fewer or "
                "smaller target blocks, or smaller encoder.patch_size"
            )
        if self.predictor_width % 4 or self.predictor_width % max(1, self.predictor_heads):
            raise UserError(
                f"objective.predictor_width={self.predictor_width}, expected a multiple of 4 and "
                f"of objective.predictor_heads={self.predictor_heads}"
            )

    @property
    def axes(self) -> Axes:
        rows, columns = self.target_size
        target = f"EMA encoder, {self.target_blocks} blocks of {rows} × {columns}"
        return Axes("a block less the target's", "identity", target, "predictor, smoothed L1")

    @property
    def target_size(self) -> tuple[int, int]:
        """Rows and columns of a target block, the same in every image."""
        return block_size(self.encoder.num_patches, self.target_scale, self.target_aspect)

    @property
    def context_size(self) -> tuple[int, int]:
        """Rows and columns of the context block before the targets are taken from it."""
        return block_size(self.encoder.num_patches, self.context_scale, 1.0)

    @property
    def kept(self) -> int:
        """How many patches f sees: what is left where no target blocks overlap."""
        return math.prod(self.context_size) - self.target_blocks * math.prod(self.target_size)

    @property
    def predictor(self) -> BlockPredictor:
        """q."""
        return BlockPredictor(
            num_patches=self.encoder.num_patches,
            out=self.encoder.width,
            width=self.predictor_width,
            depth=self.predictor_depth,
            heads=self.predictor_heads,
            dtype=self.setting.dtype,
            layout=self.encoder.layout,
        )

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, predictor_key = jax.random.split(key)
        context, where = jnp.zeros((1, 1, self.encoder.width)), jnp.zeros((1, 1, 1), jnp.int32)
        params = {
            "encoder": self.init_encoder(encoder_key, encoder),
            "predictor": self.predictor.init(predictor_key, context, where[0], where)["params"],
        }
        return params, {"target": {"encoder": params["encoder"]}}

    def advance(self, params: Params, state: State, step: jax.Array) -> State:
        """The EMA follows the step before, with that step's momentum."""
        done = jnp.maximum(step - 1, 0).astype(jnp.float32) / self.setting.total_steps
        momentum = self.momentum + (1 - self.momentum) * done
        return {"target": moved(state["target"], {"encoder": params["encoder"]}, momentum)}

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """The context, and the whole image."""
        image, count = normalize(pixels), self.encoder.num_patches
        visible, blocks = multiblock(
            keys, count, self.context_size, self.target_size, self.target_blocks
        )
        return Context(image, visible, self.kept, blocks=blocks), whole(image, count)

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """f' of every patch, through which no gradient flows: float32 [B, N, D]."""
        del params, batch, keys
        tokens = self.encode(state["target"], view).tokens[:, 1:]
        return jax.lax.stop_gradient(jax.nn.standardize(tokens))

    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: Any, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Smoothed L1 over the target blocks, their cosine, and how far predictions spread.

        `spread`, their deviation over the patches of an image, goes to 0 where f collapses.
        """
        del state, view2
        shown = visible_ids(view1.visible, view1.kept)
        predicted: Any = self.predictor.apply(
            {"params": params["predictor"]}, z1.tokens[:, 1:], shown, view1.blocks
        )
        truth = jnp.take_along_axis(z2[:, None], view1.blocks[..., None], axis=2)
        return smooth_l1(predicted, truth, beta=1.0).mean((1, 2, 3)), {
            "similarity": cosine(predicted, truth).mean((1, 2)),
            "spread": predicted.std((1, 2)).mean(-1),
        }
