"""A tokenizer as an objective: the pixels are reconstructed through a codebook of few codes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from occinv.models.decoder import Decoder, decoder_of
from occinv.models.patches import patchify, unpatchify
from occinv.models.tokenizers.vq import Quantized, Quantizer
from occinv.objectives.base import Axes, Context, Networks, Objective, Params, Reconstruction, Terms
from occinv.rng import fold
from occinv.schema import Count, Depth, NonNegative, Width
from occinv.transforms.view import View, denormalize, normalize, whole


class VQNetworks(Networks):
    """f, the codebook and d."""

    quantizer: Quantizer
    decoder: Decoder

    def quantize(self, view: View, rng: jax.Array | None = None) -> Quantized:
        """Return the nearest codes of the patch tokens of f(view)."""
        return self.quantizer(self.encode(view, rng).tokens[:, 1:])

    def decode(self, tokens: jax.Array) -> jax.Array:
        """Return d(tokens), patches [B, N, P], from codes [B, N, code_width]."""
        visible = jnp.ones(tokens.shape[:2], bool)
        return self.decoder(jnp.pad(tokens, ((0, 0), (1, 0), (0, 0))), visible)  # class token: 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQAutoencoder(Objective):
    """‖d(e) - x‖² + ‖stop_gradient(z) - e‖² + β ‖z - stop_gradient(e)‖², e = nearest code of z.

    z are the patch tokens of f, in few dimensions and of length 1 like the codes. The gradient of
    the first term passes to z as if the choice of a code were the identity (VQ-VAE).

    Attributes:
      num_ids: The number of codes.
      code_width: The dimensions of a code.
      commitment: The weight β of the commitment.
      decoder_width: The width of the tokens in the decoder d.
      decoder_depth: The number of transformer blocks of d.
      decoder_heads: The number of attention heads of d.
    """

    num_ids: Count = 512
    code_width: Width = 16
    commitment: NonNegative = 0.25
    decoder_width: Width = 512
    decoder_depth: Depth = 4
    decoder_heads: Width = 16

    @property
    def axes(self) -> Axes:
        measure = f"pixel L2 through {self.num_ids} codes"
        paper = "Yu et al. 2022, arXiv:2110.04627"
        return Axes("identity", "identity", "pixels", measure, "reconstructive", paper, "mean")

    @property
    def networks(self) -> VQNetworks:
        encoder = self.setting.encoder
        sizes = self.decoder_width, self.decoder_depth, self.decoder_heads
        decoder = decoder_of(encoder, *sizes, self.setting.dtype)
        return VQNetworks(encoder, Quantizer(self.num_ids, self.code_width), decoder)

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """The image as it is."""
        return (whole(pixels, self.setting.encoder.num_patches),)

    def features(self, net: VQNetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1: the patch tokens of f(x), their codes and the ids of these."""
        return net.quantize(views[0], fold(ctx.rng, 0))

    def loss(self, net: VQNetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """The three terms; all but the first are of vectors of length 1.

        In evaluation, `uses` [B, num_ids] are the shares of an image's patches with each code.
        """
        tokens, codes, ids = z
        stop = jax.lax.stop_gradient
        target = patchify(normalize(views[0].pixels), self.setting.encoder.patch_size)
        decoded = net.decode(tokens + stop(codes - tokens))
        reconstruction = jnp.square(decoded - target).mean((1, 2))
        codebook = jnp.square(stop(tokens) - codes).sum(-1).mean(-1)
        commitment = jnp.square(tokens - stop(codes)).sum(-1).mean(-1)
        metrics = {"reconstruction": reconstruction, "distance_to_code": commitment}
        if not self.setting.is_training:
            metrics["uses"] = jax.nn.one_hot(ids, self.num_ids).mean(1)
        return Terms(reconstruction + codebook + self.commitment * commitment, metrics)

    def summarize(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Add `used_codes`, and `perplexity`: the number of codes if all were used equally."""
        share = metrics.pop("uses")
        used = share[share > 0]
        perplexity = float(jnp.exp(-(used * jnp.log(used)).sum()))
        return {**metrics, "used_codes": float(len(used)), "perplexity": perplexity}

    def reconstruct(self, params: Params, pixels: jax.Array, visible: jax.Array) -> Reconstruction:
        """Decode the codes of the whole image; `visible` is not used."""
        net = self.networks.bind({"params": params})
        patches = net.decode(net.quantize(whole(pixels, visible.shape[1])).codes)
        encoder = self.setting.encoder
        decoded = denormalize(unpatchify(patches, encoder.patch_size, encoder.grid))
        return Reconstruction(pixels, pixels, jnp.clip(decoded, 0, 1))
