"""Which patches an evaluation removes: a function of the image, never of its place in a batch."""

from __future__ import annotations

import jax

from occinv.transform.masking import kept_patches, random_visible


def draw_visible(
    key: jax.Array, index: jax.Array, num_patches: int, ratio: float
) -> tuple[jax.Array, int]:
    """What is visible of each image when `ratio` of its patches is removed: bool [B, N], and K.

    Follows from (key, ratio, the image's number in its source) alone, so that an evaluation does
    not depend on batch size, order or devices.

    Args:
      key: scalar key array, of the evaluation's seed.
      index: int32 [B], `Batch.index`; padding may hold anything.
      num_patches: N.
      ratio: in (0, 1). K, the number of visible patches, is the same for all images.

    Raises:
      UserError: as `kept_patches`.
    """
    kept = kept_patches(num_patches, ratio)
    of_ratio = jax.random.fold_in(key, round(ratio * 1_000_000))
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(of_ratio, index)
    return random_visible(keys, num_patches, kept), kept
