"""MAE, Eqs. (2) and (3): the target is the pixels themselves."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from occinv.losses.reconstruction import normalize_patches, patch_distance, patch_statistics
from occinv.models.decoder import Decoder, decoder_of
from occinv.models.patches import patchify, unpatchify
from occinv.models.vit import Features, ViT
from occinv.objectives.base import Axes, Context, Networks, Objective, Params, Reconstruction, Terms
from occinv.rng import fold, split
from occinv.schema import Depth, NonNegative, Rate, Width
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, random_visible
from occinv.transforms.mixing import mix
from occinv.transforms.view import View, denormalize, normalize, whole


class MAENetworks(Networks):
    """The encoder f and the decoder d."""

    decoder: Decoder

    def decode(self, z: Features, view: View) -> jax.Array:
        """Return d(z), patches [B, N, P], from the features of `view`."""
        return self.decoder(z.tokens, view.visible)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAE(Objective):
    """‖(d(f(x ⊙ M)) - x) ⊙ (1 - M)‖², where M are the visible patches.

    Attributes:
      mask_ratio: The share of patches that T1 removes; 0 makes it an autoencoder of all patches.
      cutmix: α of CutMix, applied before masking in training; 0: none.
      color: The jitter after CutMix, or None.
      augmented: What CutMix and jitter change: the `input` of the encoder, with the original
        pixels as target (Table 4's "unmasked only"), or the whole `image`, including the target.
      normalize_target: Whether each target patch is scaled to mean 0 and standard deviation 1.
      decoder_width: The width of the tokens in the decoder d.
      decoder_depth: The number of transformer blocks of d.
      decoder_heads: The number of attention heads of d.
    """

    mask_ratio: Rate = 0.75
    cutmix: NonNegative = 0.0
    color: ColorJitter | None = None
    augmented: Literal["input", "image"] = "input"
    normalize_target: bool = True
    decoder_width: Width = 512
    decoder_depth: Depth = 8
    decoder_heads: Width = 16

    def __post_init__(self) -> None:
        if self.mask_ratio != 0:
            kept_patches(self.setting.encoder.num_patches, self.mask_ratio)

    @property
    def axes(self) -> Axes:
        t1 = describe(self.mask_ratio, self.cutmix, self.color)
        t2 = "the complement" if self.mask_ratio else "identity"
        paper = "He et al. 2022, arXiv:2111.06377"
        return Axes(t1, t2, "pixels", "pixel L2", "reconstructive", paper)

    @property
    def couples(self) -> Literal["nothing", "features"]:
        # CutMix pastes other images before f sees them.
        return "features" if self.cutmix and self.setting.is_training else "nothing"

    @property
    def networks(self) -> MAENetworks:
        encoder = self.setting.encoder
        sizes = self.decoder_width, self.decoder_depth, self.decoder_heads
        return MAENetworks(encoder, decoder_of(encoder, *sizes, self.setting.dtype))

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """Eq. (6): T1(x) = x ⊙ M of the augmented image, T2(x) = x ⊙ (1 - M) of the target."""
        count = self.setting.encoder.num_patches
        seen = self.augment(pixels, fold(rng, 1))
        target = pixels if self.augmented == "input" else seen
        if self.mask_ratio == 0:
            return whole(seen, count), whole(target, count)
        kept = kept_patches(count, self.mask_ratio)
        visible = random_visible(rng, count, kept)
        return View(seen, visible, kept), View(target, ~visible, count - kept)

    def augment(self, pixels: jax.Array, rng: jax.Array) -> jax.Array:
        """Apply CutMix and color jitter to `pixels` float32 [B, H, W, C] in training."""
        if not self.setting.is_training:
            return pixels
        cutmix_rng, color_rng = split(rng, 2)
        pixels = mix(cutmix_rng, pixels, mixup=0.0, cutmix=self.cutmix).pixels
        return pixels if self.color is None else self.color(color_rng, pixels)

    def features(self, net: MAENetworks, views: tuple[View, ...], ctx: Context) -> Any:
        """z1 = f(T1 x). The target is the pixels of T2 x, which no network encodes."""
        return net.encode(views[0], fold(ctx.rng, 0))

    def loss(self, net: MAENetworks, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """Eq. (3): the distance on removed patches, or on all patches if mask_ratio is 0."""
        first, second = views
        predicted = net.decode(z, first)
        return Terms(patch_distance(predicted, self.patches(second), second.visible), {})

    def patches(self, view: View) -> jax.Array:
        """Return the target patches [B, N, P] of a view's image."""
        patches = patchify(normalize(view.pixels), self.setting.encoder.patch_size)
        return normalize_patches(patches) if self.normalize_target else patches

    def reconstruct(self, params: Params, pixels: jax.Array, visible: jax.Array) -> Reconstruction:
        """Decode the image from its visible patches, as the official demo does.

        Predicted patches are scaled by the true mean and deviation of their patch if targets are
        normalized, and visible patches are pasted.

        Args:
          params: Parameters of the networks.
          pixels: float32 [B, H, W, C] in [0, 1].
          visible: bool [B, N] with equally many True in each row.
        """
        encoder = self.setting.encoder
        size, count = encoder.patch_size, encoder.num_patches
        kept = kept_patches(count, self.mask_ratio) if self.mask_ratio else count
        view = View(pixels, visible, kept)
        net = self.networks.bind({"params": params})
        predicted = net.decode(net.encode(view), view)
        if self.normalize_target:
            mean, deviation = patch_statistics(patchify(normalize(pixels), size))
            predicted = predicted * deviation + mean
        return pasted(predicted, pixels, visible, encoder)


def pasted(
    predicted: jax.Array, pixels: jax.Array, visible: jax.Array, encoder: ViT
) -> Reconstruction:
    """Replace the patches of images that are not visible by predicted ones.

    Args:
      predicted: float [B, N, P], patches of normalized pixels, as `patchify` orders them.
      pixels: float32 [B, H, W, C] in [0, 1].
      visible: bool [B, N].
      encoder: The encoder, whose image and patches these are.
    """
    patch_size, grid = encoder.patch_size, encoder.grid
    predicted = patchify(denormalize(unpatchify(predicted, patch_size, grid)), patch_size)
    original, seen = patchify(pixels, patch_size), visible[..., None]
    shown = jnp.where(seen, original, jnp.clip(predicted, 0, 1))
    return Reconstruction(
        original=pixels,
        masked=unpatchify(jnp.where(seen, original, 0.5), patch_size, grid),
        reconstructed=unpatchify(shown, patch_size, grid),
    )


def describe(mask_ratio: float, cutmix: float, color: ColorJitter | None) -> str:
    """Describe a transformation in words, such as `75% removed, CutMix, color`."""
    parts = {
        f"{mask_ratio:.0%} removed": mask_ratio,
        "CutMix": cutmix,
        "color": color is not None,
    }
    return ", ".join(name for name, is_on in parts.items() if is_on) or "identity"
