"""A tokenizer as an objective: the pixels again, through a codebook of few words."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from occinv.data.batch import Batch
from occinv.models.decoder import Decoder, decoder_of
from occinv.models.patches import patchify, unpatchify
from occinv.models.tokenizers.vq import Quantized, Quantizer
from occinv.models.vit import Features
from occinv.objectives.base import Axes, Objective, Params, State
from occinv.transforms.view import View, denormalize, normalize, unit_range, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQAutoencoder(Objective):
    """‖d(e) - x‖² + ‖stop_gradient(z) - e‖² + β ‖z - stop_gradient(e)‖², e = nearest code of z.

    z are the patch tokens of f, in few dimensions and of length 1, as the codes are. The gradient
    of the first term passes the choice of a code as if there were none (VQ-VAE).

    Attributes:
      num_ids, code_width: words of the codebook, and their dimensions.
      commitment: β.
      decoder_width, decoder_depth, decoder_heads: of d.
    """

    num_ids: int = 512
    code_width: int = 16
    commitment: float = 0.25
    decoder_width: int = 512
    decoder_depth: int = 4
    decoder_heads: int = 16

    framework: ClassVar[str] = "reconstructive"
    paper: ClassVar[str] = "Yu et al. 2022, arXiv:2110.04627"

    @property
    def axes(self) -> Axes:
        return Axes("identity", "identity", "pixels", f"pixel L2 through {self.num_ids} codes")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return ((0, 0),)

    @property
    def quantizer(self) -> Quantizer:
        """The codebook."""
        return Quantizer(self.num_ids, self.code_width)

    @property
    def decoder(self) -> Decoder:
        """d."""
        sizes = self.decoder_width, self.decoder_depth, self.decoder_heads
        return decoder_of(self.encoder, *sizes, self.setting.dtype)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, quantizer_key, decoder_key = jax.random.split(key, 3)
        count = self.encoder.num_patches
        tokens, visible = jnp.zeros((1, count, self.encoder.width)), jnp.ones((1, count), bool)
        codes = jnp.zeros((1, 1 + count, self.code_width))
        return {
            "encoder": self.init_encoder(encoder_key, encoder),
            "quantizer": self.quantizer.init(quantizer_key, tokens)["params"],
            "decoder": self.decoder.init(decoder_key, codes, visible)["params"],
        }, {}

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """The image as it is."""
        del keys
        return (whole(normalize(pixels), self.encoder.num_patches),)

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """The patches [B, N, P]."""
        del params, state, batch, keys
        return patchify(view.pixels, self.encoder.patch_size)

    def quantize(self, params: Params, z: Features) -> Quantized:
        """The nearest codes of the patch tokens."""
        found: Any = self.quantizer.apply({"params": params["quantizer"]}, z.tokens[:, 1:])
        return found

    def decode(self, params: Params, quantized: Quantized) -> jax.Array:
        """d(e), patches [B, N, P]; its gradient goes to z."""
        z, codes, ids = quantized
        passed = z + jax.lax.stop_gradient(codes - z)
        tokens = jnp.pad(passed, ((0, 0), (1, 0), (0, 0)))  # no class token: patches tell all
        visible = jnp.ones(ids.shape, bool)
        return self.decoder.apply({"params": params["decoder"]}, tokens, visible)  # type: ignore[return-value]

    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The three terms; all but the first are of vectors of length 1."""
        del state, view1, view2
        quantized = self.quantize(params, z1)
        z, codes, _ = quantized
        stop = jax.lax.stop_gradient
        reconstruction = jnp.square(self.decode(params, quantized) - z2).mean((1, 2))
        codebook = jnp.square(stop(z) - codes).sum(-1).mean(-1)
        commitment = jnp.square(z - stop(codes)).sum(-1).mean(-1)
        loss = reconstruction + codebook + self.commitment * commitment
        return loss, {"reconstruction": reconstruction, "distance_to_code": commitment}

    def evaluate(
        self, params: Params, state: State, batch: Batch, keys: jax.Array
    ) -> dict[str, jax.Array]:
        """With `uses` [num_ids]: how often each code was the nearest, for an image's mean patch."""
        view = whole(normalize(unit_range(batch.image)), self.encoder.num_patches)
        ids = self.quantize(params, self.encode(params, view)).ids
        uses = jax.nn.one_hot(ids, self.num_ids).mean(1)
        sums = super().evaluate(params, state, batch, keys)
        return {**sums, "uses": batch.weight @ uses}

    def summarize(self, metrics: dict[str, Any]) -> dict[str, float]:
        """`used_codes`, and `perplexity`: how many there would be if all were used alike."""
        share = metrics.pop("uses")
        used = share[share > 0]
        perplexity = float(jnp.exp(-(used * jnp.log(used)).sum()))
        return {**metrics, "used_codes": float(len(used)), "perplexity": perplexity}

    def pictures(self, params: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
        del keys
        pixels = unit_range(batch.image)
        view = whole(normalize(pixels), self.encoder.num_patches)
        patches = self.decode(params, self.quantize(params, self.encode(params, view)))
        decoded = denormalize(unpatchify(patches, self.encoder.patch_size))
        return {"original": pixels, "reconstructed": jnp.clip(decoded, 0, 1)}
