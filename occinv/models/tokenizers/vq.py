"""A codebook in the features of a ViT, learned by configs/tokenizer.py."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv import schema
from occinv.losses.losses import unit
from occinv.models import vit
from occinv.models.blocks import XAVIER
from occinv.models.tokenizers.base import Params, PretrainedTokenizer
from occinv.schema import UserError
from occinv.transforms.view import normalize


class Quantized(NamedTuple):
    """Tokens and the words of the codebook nearest to them, as vectors of length 1."""

    tokens: jax.Array  # float32 [B, N, code_width]
    codes: jax.Array  # float32 [B, N, code_width]
    ids: jax.Array  # int32 [B, N]


class Quantizer(nn.Module):
    """Few dimensions and only directions, so that most of the words find a use (ViT-VQGAN)."""

    num_ids: int
    code_width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> Quantized:
        """Of tokens [B, N, D]."""
        project = nn.Dense(self.code_width, kernel_init=XAVIER, name="project")
        codes = self.param("codes", nn.initializers.normal(1.0), (self.num_ids, self.code_width))
        found, codes = unit(project(tokens)), unit(codes)
        cosines = jnp.einsum("bnd,kd->bnk", found, codes, precision="highest")
        ids = cosines.argmax(-1).astype(jnp.int32)
        return Quantized(found, codes[ids], ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQ(PretrainedTokenizer):
    """The ids of a run of configs/tokenizer.py.

    Attributes:
      code_width, encoder: as in that run.
    """

    num_ids: int = 512
    code_width: int = 16
    encoder: schema.Encoder = schema.Encoder()
    components: ClassVar[tuple[str, ...]] = ("encoder", "quantizer")

    def __post_init__(self) -> None:
        if self.encoder.patch_size != self.patch_size:
            raise UserError(
                f"objective.tokenizer.encoder.patch_size={self.encoder.patch_size}, expected "
                f"{self.patch_size}: a patch has one id"
            )

    @property
    def modules(self) -> tuple[vit.ViT, Quantizer]:
        """f of that run, and its codebook."""
        encoder = vit.make_vit(self.encoder, self.image_size)
        return encoder, Quantizer(self.num_ids, self.code_width)

    def shapes(self) -> Any:
        encoder, quantizer = self.modules
        pixels = jnp.zeros((1, self.image_size, self.image_size, 3))
        tokens = jnp.zeros((1, 1, encoder.width))
        found = {
            name: jax.eval_shape(module.init, jax.random.key(0), example)["params"]
            for name, module, example in (
                ("encoder", encoder, pixels),
                ("quantizer", quantizer, tokens),
            )
        }
        return found

    def ids(self, params: Params, pixels: jax.Array) -> jax.Array:
        encoder, quantizer = self.modules
        z: Any = encoder.apply({"params": params["encoder"]}, normalize(pixels))
        found: Any = quantizer.apply({"params": params["quantizer"]}, z.tokens[:, 1:])
        return found.ids
