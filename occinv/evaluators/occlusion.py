"""Which patches an evaluation removes: a function of the image, never of its place in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from occinv.transforms.masking import kept_patches


def draw_visible(
    key: jax.Array, index: jax.Array, num_patches: int, ratios: Sequence[float]
) -> tuple[jax.Array, list[int]]:
    """What is visible of each image when a share of its patches is removed: bool [R, B, N], and K.

    Follows from (key, ratio, the image's number in its source) alone, so that an evaluation does
    not depend on batch size, order, devices or the other ratios.

    Args:
      key: scalar key array, of the evaluation's seed.
      index: int32 [B], `Batch.index`; padding may hold anything.
      num_patches: N.
      ratios: R shares in (0, 1). K[r] patches are visible in every image at ratio r.

    Raises:
      UserError: as `kept_patches`.
    """
    kept = [kept_patches(num_patches, ratio) for ratio in ratios]
    numbers = jnp.array([round(ratio * 1_000_000) for ratio in ratios])

    def noise(number: jax.Array, image: jax.Array) -> jax.Array:
        own = jax.random.fold_in(jax.random.fold_in(key, number), image)
        return jax.random.uniform(own, (num_patches,))

    # All ratios in one sort: XLA takes long to compile one.
    drawn = jax.vmap(jax.vmap(noise, (None, 0)), (0, None))(numbers, index)
    rank = jnp.argsort(jnp.argsort(drawn, axis=-1), axis=-1)
    return rank < jnp.array(kept)[:, None, None], kept
