"""Masks for evaluation: they depend on the image, never on its position in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from occinv.models.vit import ViT
from occinv.parallel import replicated
from occinv.schema import UserError
from occinv.transforms.masking import kept_patches


def check_occlusion(encoder: ViT, ratios: Sequence[float], removed: str) -> None:
    """Raise UserError if patches cannot be removed from images in this way.

    A ratio is outside (0, 1) or leaves no patch, no ratio is given, or the encoder has no mask
    token to put in their place.
    """
    if not ratios:
        raise UserError("ratios is empty, expected one or more shares of patches in (0, 1)")
    for ratio in ratios:
        kept_patches(encoder.num_patches, ratio)
    if removed == "mask_token" and not encoder.mask_token:
        raise UserError(
            "removed='mask_token', but the encoder was trained without a mask token; use "
            "removed='drop'"
        )


def put_rng(mesh: Mesh, seed: int) -> jax.Array:
    """Return the PRNG key of a seed on every device."""
    # jax.device_put cannot place a key on devices of other processes.
    return jax.jit(lambda: jax.random.key(seed), out_shardings=replicated(mesh))()


def draw_visible(
    rng: jax.Array, index: jax.Array, num_patches: int, ratios: Sequence[float]
) -> tuple[jax.Array, list[int]]:
    """Draw which patches of each image are visible, at each mask ratio.

    The draws depend only on `rng`, the ratio and the image's index in its source. An evaluation
    therefore does not depend on batch size, order, devices or the other ratios.

    Args:
      rng: A scalar PRNG key.
      index: int32 [B], `Batch.index`; padding may have any value.
      num_patches: N.
      ratios: R shares of removed patches, in (0, 1).

    Returns:
      bool [R, B, N], True for visible patches, and their number K in an image at each ratio.

    Raises:
      UserError: As `kept_patches`.
    """
    kept = [kept_patches(num_patches, ratio) for ratio in ratios]
    numbers = jnp.array([round(ratio * 1_000_000) for ratio in ratios])

    def noise(number: jax.Array, image: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(rng, number), image)
        return jax.random.uniform(own, (num_patches,))

    # One sort for all ratios, because XLA compiles sorts slowly.
    drawn = jax.vmap(jax.vmap(noise, (None, 0)), (0, None))(numbers, index)
    rank = jnp.argsort(jnp.argsort(drawn, axis=-1), axis=-1)
    return rank < jnp.array(kept)[:, None, None], kept
