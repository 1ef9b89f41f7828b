"""A codebook over the features of a ViT, trained by configs/tokenizer.py."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv import schema
from occinv.losses.contrastive import unit
from occinv.models.attention import XAVIER
from occinv.models.tokenizers.base import Params, PretrainedTokenizer
from occinv.models.vit import ViT, make_vit
from occinv.schema import Count, UserError, Width

# Fields of a ViT that decide its output but no shape of its parameters.
WITHOUT_SHAPES = ("heads", "gelu", "pixel_range")


class Quantized(NamedTuple):
    """Tokens and their nearest codes, as vectors of length 1.

    Attributes:
      tokens, codes: float32 [B, N, code_width].
      ids: int32 [B, N], the numbers of the codes.
    """

    tokens: jax.Array
    codes: jax.Array
    ids: jax.Array


class Quantizer(nn.Module):
    """Codes of few dimensions and length 1, so that most of them are used (ViT-VQGAN)."""

    num_ids: int
    code_width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> Quantized:
        """Quantize tokens [B, N, D]."""
        project = nn.Dense(self.code_width, kernel_init=XAVIER, name="project")
        codes = self.param("codes", nn.initializers.normal(1.0), (self.num_ids, self.code_width))
        found, codes = unit(project(tokens)), unit(codes)
        cosines = jnp.einsum("bnd,kd->bnk", found, codes, precision="highest")
        ids = cosines.argmax(-1).astype(jnp.int32)
        return Quantized(found, codes[ids], ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQ(PretrainedTokenizer):
    """The codebook of a run of configs/tokenizer.py.

    Attributes:
      code_width: The dimensions of a code, as in the tokenizer's run.
      encoder: The encoder of the tokenizer's run.
    """

    num_ids: Count = 512
    code_width: Width = 16
    encoder: schema.Encoder = schema.Encoder()
    components: ClassVar[tuple[str, ...]] = ("encoder", "quantizer")

    def __post_init__(self) -> None:
        if self.encoder.patch_size != self.patch_size:
            raise UserError(
                f"objective.tokenizer.encoder.patch_size={self.encoder.patch_size}, expected "
                f"{self.patch_size}: a patch has one id"
            )

    @property
    def modules(self) -> tuple[ViT, Quantizer]:
        """The encoder and the codebook of that run."""
        encoder = make_vit(self.encoder, self.image_size, channels=self.channels)
        return encoder, Quantizer(self.num_ids, self.code_width)

    def shapes(self) -> Any:
        encoder, quantizer = self.modules
        pixels = jnp.zeros((1, *encoder.image_shape))
        tokens = jnp.zeros((1, 1, encoder.width))
        modules = {"encoder": (encoder, pixels), "quantizer": (quantizer, tokens)}
        return {
            name: jax.eval_shape(module.init, jax.random.key(0), example)["params"]
            for name, (module, example) in modules.items()
        }

    def check_run(self, experiment: schema.Experiment) -> None:
        theirs = make_vit(
            experiment.encoder, experiment.data.image_size, channels=experiment.data.channels
        )
        ours, _ = self.modules
        differ = [
            f"{name}={getattr(ours, name)!r} ({getattr(theirs, name)!r} there)"
            for name in ("image_size", "patch_size", "channels", *WITHOUT_SHAPES)
            if getattr(ours, name) != getattr(theirs, name)
        ]
        if differ:
            raise UserError(
                f"objective.tokenizer.encoder differs from the run in {self.start!r}: "
                f"{', '.join(differ)}; set objective.tokenizer.encoder, and data.image_size and "
                "data.channels, to the values of that run"
            )

    def ids(self, params: Params, pixels: jax.Array) -> jax.Array:
        encoder, quantizer = self.modules
        z: Any = encoder.apply({"params": params["encoder"]}, pixels)
        found: Any = quantizer.apply({"params": params["quantizer"]}, z.tokens[:, 1:])
        return found.ids
