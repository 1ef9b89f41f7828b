"""A codebook in the features of a ViT, learnt by configs/tokenizer.py."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv import schema
from occinv.encoder import vit
from occinv.encoder.blocks import XAVIER
from occinv.measure.losses import unit
from occinv.schema import UserError
from occinv.tokenizer.base import Params, Trained
from occinv.transform.view import normalise


class Quantised(NamedTuple):
    """Tokens and the words of the codebook nearest to them, as vectors of length 1."""

    tokens: jax.Array  # float32 [B, N, code_width]
    codes: jax.Array  # float32 [B, N, code_width]
    ids: jax.Array  # int32 [B, N]


class Quantiser(nn.Module):
    """Few dimensions and only directions, so that most of the words find a use (ViT-VQGAN)."""

    num_ids: int
    code_width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> Quantised:
        """Of tokens [B, N, D]."""
        project = nn.Dense(self.code_width, kernel_init=XAVIER, name="project")
        codes = self.param("codes", nn.initializers.normal(1.0), (self.num_ids, self.code_width))
        found, codes = unit(project(tokens)), unit(codes)
        cosines = jnp.einsum("bnd,kd->bnk", found, codes, precision="highest")
        ids = cosines.argmax(-1).astype(jnp.int32)
        return Quantised(found, codes[ids], ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorQuantised(Trained):
    """The ids of a run of configs/tokenizer.py.

    Attributes:
      code_width, encoder: as in that run.
    """

    num_ids: int = 512
    code_width: int = 16
    encoder: schema.Encoder = schema.Encoder()
    components: ClassVar[tuple[str, ...]] = ("encoder", "quantiser")

    def __post_init__(self) -> None:
        if self.encoder.patch_size != self.patch_size:
            raise UserError(
                f"objective.tokenizer.encoder.patch_size={self.encoder.patch_size}, expected "
                f"{self.patch_size}: a patch has one id"
            )

    @property
    def modules(self) -> tuple[vit.ViT, Quantiser]:
        """f of that run, and its codebook."""
        encoder = vit.build(self.encoder, self.image_size)
        return encoder, Quantiser(self.num_ids, self.code_width)

    def shapes(self) -> Any:
        encoder, quantiser = self.modules
        pixels = jnp.zeros((1, self.image_size, self.image_size, 3))
        tokens = jnp.zeros((1, 1, encoder.width))
        found = {
            name: jax.eval_shape(module.init, jax.random.key(0), example)["params"]
            for name, module, example in (
                ("encoder", encoder, pixels),
                ("quantiser", quantiser, tokens),
            )
        }
        return found

    def ids(self, params: Params, pixels: jax.Array) -> jax.Array:
        encoder, quantiser = self.modules
        z: Any = encoder.apply({"params": params["encoder"]}, normalise(pixels))
        found: Any = quantiser.apply({"params": params["quantiser"]}, z.tokens[:, 1:])
        return found.ids
