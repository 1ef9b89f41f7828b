"""MAE, Eqs. (2) and (3): the target is the pixels themselves."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from occinv.data.batch import Batch
from occinv.losses.losses import normalize_patches, patch_distance, patch_statistics
from occinv.models.decoder import Decoder, decoder_of
from occinv.models.patches import patchify, unpatchify
from occinv.models.vit import Features
from occinv.objectives.base import Axes, Objective, Params, State, occlusion
from occinv.rng import fold, split
from occinv.transforms.color import ColorJitter
from occinv.transforms.masking import kept_patches, random_visible
from occinv.transforms.mixing import mix
from occinv.transforms.view import View, denormalize, normalize, unit_range, whole


class Reconstruction(NamedTuple):
    """Three pictures of each image, float32 [B, H, W, 3] in [0, 1]."""

    original: jax.Array
    masked: jax.Array  # removed patches are gray
    reconstructed: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAE(Objective):
    """‖(d(f(x ⊙ M)) - x) ⊙ (1 - M)‖².

    Attributes:
      mask_ratio: of patches that T1 removes; 0 makes it a plain autoencoder of all patches.
      cutmix: α of the share that an image keeps when a box of another is pasted into it; 0: none.
      color: the jitter that follows, or None.
      augmented: what these two change: the `input` of the encoder, the target staying the pixels
        that were there (Table 4's "unmasked only"), or the whole `image`, target and all.
      normalize_target: whether each target patch is scaled to mean 0 and deviation 1.
      decoder_width, decoder_depth, decoder_heads: of d.
    """

    mask_ratio: float = 0.75
    cutmix: float = 0.0
    color: ColorJitter | None = None
    augmented: Literal["input", "image"] = "input"
    normalize_target: bool = True
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    framework: ClassVar[str] = "reconstructive"
    paper: ClassVar[str] = "He et al. 2022, arXiv:2111.06377"

    def __post_init__(self) -> None:
        if self.mask_ratio != 0:
            kept_patches(self.encoder.num_patches, self.mask_ratio)

    @property
    def axes(self) -> Axes:
        t1 = occlusion(self.mask_ratio, self.cutmix, self.color)
        t2 = "the complement" if self.mask_ratio else "identity"
        return Axes(t1, t2, "pixels", "pixel L2")

    @property
    def couples_batch(self) -> bool:
        return bool(self.cutmix)

    @property
    def for_evaluation(self) -> Objective:
        return dataclasses.replace(self, cutmix=0.0, color=None)

    @property
    def decoder(self) -> Decoder:
        """d."""
        sizes = self.decoder_width, self.decoder_depth, self.decoder_heads
        return decoder_of(self.encoder, *sizes, self.setting.dtype)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, decoder_key = jax.random.split(key)
        count, width = self.encoder.num_patches, self.encoder.width
        tokens, visible = jnp.zeros((1, 1 + count, width)), jnp.ones((1, count), bool)
        return {
            "encoder": self.init_encoder(encoder_key, encoder),
            "decoder": self.decoder.init(decoder_key, tokens, visible)["params"],
        }, {}

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """Eq. (6): T1(x) = x ⊙ M, T2(x) = x ⊙ (1 - M); T1 of the augmented image."""
        seen = self.augment(pixels, fold(keys, 1))
        first, second = self.occlude(normalize(seen), keys)
        if self.augmented == "input":
            second = View(normalize(pixels), second.visible, second.kept)
        return first, second

    def augment(self, pixels: jax.Array, keys: jax.Array) -> jax.Array:
        """CutMix and color jitter of `pixels` float32 [B, H, W, 3] in [0, 1], where asked for."""
        cutmix_keys, color_keys = split(keys, 2)
        pixels = mix(cutmix_keys, pixels, mixup=0.0, cutmix=self.cutmix).pixels
        return pixels if self.color is None else self.color(color_keys, pixels)

    def occlude(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, View]:
        """Both halves of normalized `pixels`: what M lets through, and what it removes.

        Without masking both are the whole image.
        """
        count = self.encoder.num_patches
        if self.mask_ratio == 0:
            return whole(pixels, count), whole(pixels, count)
        kept = kept_patches(count, self.mask_ratio)
        visible = random_visible(keys, count, kept)
        return View(pixels, visible, kept), View(pixels, ~visible, count - kept)

    def patches(self, view: View) -> jax.Array:
        """The target patches [B, N, P] of a view's image."""
        patches = patchify(view.pixels, self.encoder.patch_size)
        return normalize_patches(patches) if self.normalize_target else patches

    def decode(self, params: Params, z: Features, view: View) -> jax.Array:
        """d(z), patches [B, N, P]."""
        return self.decoder.apply({"params": params["decoder"]}, z.tokens, view.visible)  # type: ignore[return-value]

    def reconstruct(self, params: Params, pixels: jax.Array, visible: jax.Array) -> Reconstruction:
        """The image that the decoder sees in the visible patches, as the official demo shows it.

        Predicted patches get the true mean and deviation of their patch back if targets are
        normalized; visible patches are pasted.

        Args:
          pixels: float32 [B, H, W, 3] in [0, 1].
          visible: bool [B, N] with equally many True in each row.
        """
        size, count = self.encoder.patch_size, self.encoder.num_patches
        kept = kept_patches(count, self.mask_ratio) if self.mask_ratio else count
        view = View(normalize(pixels), visible, kept)
        predicted = self.decode(params, self.encode(params, view), view)
        if self.normalize_target:
            mean, deviation = patch_statistics(patchify(view.pixels, size))
            predicted = predicted * deviation + mean
        predicted = patchify(denormalize(unpatchify(predicted, size)), size)
        original = patchify(pixels, size)
        seen = visible[..., None]
        return Reconstruction(
            original=pixels,
            masked=unpatchify(jnp.where(seen, original, 0.5), size),
            reconstructed=unpatchify(jnp.where(seen, original, jnp.clip(predicted, 0, 1)), size),
        )

    def pictures(self, params: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
        pixels = unit_range(batch.image)
        view, _ = self.occlude(pixels, keys)
        return self.reconstruct(params, pixels, view.visible)._asdict()

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        del params, state, batch, keys
        return self.patches(view)

    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Eq. (3): over the patches that T1 removed, which are those of T2 (without T1, all)."""
        del state
        return patch_distance(self.decode(params, z1, view1), z2, view2.visible), {}
