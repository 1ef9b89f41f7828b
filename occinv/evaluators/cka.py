"""Occlusion invariance (Figure 1): linear CKA between features of full and occluded images.

    CKA = Σ_b HSIC₁(K_b, L_b) / sqrt(Σ_b HSIC₁(K_b, K_b) · Σ_b HSIC₁(L_b, L_b))

over minibatches b, with K = X Xᵀ and L = Y Yᵀ. HSIC₁ is the unbiased estimator of Song et al.
(2012, Eq. 5), so that the value does not grow as batches shrink. The sums of Nguyen et al. (2021,
"Do wide and deep networks learn the same things?", Eq. 3) need one pass over the images.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from occinv.data.batch import Batch
from occinv.evaluators.occlusion import draw_visible
from occinv.models.blocks import Layout
from occinv.models.vit import ViT
from occinv.parallel import fetch, make_mesh, put_batch, replicated
from occinv.schema import UserError, nearest
from occinv.transforms.masking import kept_patches, visible_ids
from occinv.transforms.view import unit_range

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MIN_BATCH = 4  # HSIC₁ divides by n - 3

Tokens = Literal["visible", "mean", "class"]
Removed = Literal["drop", "mask_token"]

logger = logging.getLogger("occinv.evaluators")


class Curves(NamedTuple):
    """CKA between the features of full and occluded images.

    Attributes:
      ratios: The R shares of removed patches.
      blocks: 1 to depth.
      values: float64 [R, depth], 1 where the features are alike. NaN where features do not vary
        over the images. An unbiased estimate can be slightly below 0.
      images: The number of measured images.
    """

    ratios: tuple[float, ...]
    blocks: tuple[int, ...]
    values: np.ndarray
    images: int


def cka_curves(
    encoder: ViT,
    params: Any,
    batches: Iterable[Batch],
    ratios: Sequence[float] = RATIOS,
    *,
    tokens: Tokens = "visible",
    removed: Removed = "drop",
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Curves:
    """Measure linear CKA between full and occluded images after each block.

    The removed patches depend on (seed, ratio, the image's index) alone. Padding does not count. A
    batch of fewer than 4 images has no unbiased estimate; it is left out with a warning. A smaller
    last batch is weighted by its number of images.

    Args:
      encoder: f.
      params: The parameters of f alone.
      batches: This process's rows of the global batches, which are read once.
      ratios: Shares of patches to remove, in (0, 1).
      tokens: The features of an image. `visible`: the patch tokens that are visible in the occluded
        image, concatenated, and the same positions of the full image. `mean`: the mean of all patch
        tokens that the encoder returns. `class`: the class token.
      removed: Whether removed patches are dropped (possible for every model), or replaced by the
        mask token of an encoder that was trained with one.
      seed: The seed of the masks.
      mesh: The devices that share a batch; None: the first one.

    Raises:
      UserError: A choice is unknown, a ratio is outside (0, 1) or leaves no patch, the encoder has
        no mask token, or no batch has 4 images.
    """
    _check(encoder, ratios, tokens, removed)
    mesh = mesh or make_mesh(jax.local_devices()[:1])
    # The outputs of the blocks do not depend on these options, nor on a mask token that replaces
    # nothing. With equal options, models of one size share one compiled program.
    plain = encoder.clone(
        final_norm=False,
        drop_path=0.0,
        train_position=False,
        freeze_patch_embed=False,
        mask_token=removed == "mask_token",
        layout=Layout(unroll=1),  # the blocks are compiled once for each ratio; a loop is short
    )
    unused = {"norm"} if plain.mask_token else {"norm", "mask_token"}
    used = {name: value for name, value in params.items() if name not in unused}
    used, rng = jax.device_put((used, jax.random.key(seed)), replicated(mesh))

    sums = np.zeros((3, len(ratios), encoder.depth))
    images = left_out = 0
    for batch in batches:
        values, number = fetch(
            _hsic(used, put_batch(mesh, batch), rng, plain, tuple(ratios), tokens, mesh)
        )
        count = round(number.item())
        if count < MIN_BATCH:
            left_out += count
            continue
        sums += count * values.astype(np.float64)
        images += count
    if left_out:
        logger.warning(
            "CKA leaves out %d images of batches with fewer than %d", left_out, MIN_BATCH
        )
    if not images:
        raise UserError(f"found {left_out} images, but CKA needs a batch of at least {MIN_BATCH}")
    between, of_full, of_occluded = sums
    scale = np.sqrt(of_full * of_occluded)
    values = np.divide(between, scale, out=np.full_like(scale, np.nan), where=scale > 0)
    return Curves(tuple(ratios), tuple(range(1, encoder.depth + 1)), values, images)


def _check(encoder: ViT, ratios: Sequence[float], tokens: str, removed: str) -> None:
    """Raise UserError for an impossible argument of `cka_curves`."""
    for name, value, choices in (
        ("tokens", tokens, get_args(Tokens)),
        ("removed", removed, get_args(Removed)),
    ):
        if value not in choices:
            raise UserError(f"unknown {name}={value!r}{nearest(value, choices)}")
    if removed == "mask_token" and not encoder.mask_token:
        raise UserError(
            "removed='mask_token', but the encoder was trained without a mask token; use "
            "removed='drop'"
        )
    if not ratios:
        raise UserError("ratios is empty, expected one or more shares of patches in (0, 1)")
    for ratio in ratios:
        kept_patches(encoder.num_patches, ratio)


@functools.partial(jax.jit, static_argnames=("encoder", "ratios", "tokens", "mesh"))
def _hsic(
    params: Any,
    batch: Batch,
    rng: jax.Array,
    encoder: ViT,
    ratios: tuple[float, ...],
    tokens: Tokens,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Return HSIC₁ of (full, occluded) and of each with itself, [3, R, depth], and n []."""
    pixels = unit_range(batch.image)
    real = (batch.weight > 0).astype(jnp.float32)

    def blocks_of(*visible: Any) -> jax.Array:
        found: Any = encoder.apply({"params": params}, pixels, *visible)
        return found.blocks

    full = blocks_of()
    visible, kept = draw_visible(rng, batch.index, encoder.num_patches, ratios)
    grams = []
    for seen, count in zip(visible, kept, strict=True):
        occluded = blocks_of(seen, count)
        ids = visible_ids(seen, count)
        grams += [gram(features(blocks, ids, tokens), real) for blocks in (full, occluded)]
    centered = u_centered(jnp.stack(grams), real)
    result = jnp.stack(hsic(centered[0::2], centered[1::2], real)), real.sum()
    return jax.lax.with_sharding_constraint(result, replicated(mesh))


def features(blocks: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """Return the features of each image after each block: float32 [depth, B, F].

    Args:
      blocks: [depth, B, 1 + n, D], with all n = N patches, or only the K visible ones.
      ids: int32 [B, K], the visible patches in raster order.
      tokens: As in `cka_curves`.
    """
    blocks = jnp.asarray(blocks, jnp.float32)
    if tokens == "class":
        return blocks[:, :, 0]
    patches = blocks[:, :, 1:]
    if tokens == "mean":
        return patches.mean(2)
    if patches.shape[2] != ids.shape[1]:
        patches = jnp.take_along_axis(patches, ids[None, :, :, None], axis=2)
    return patches.reshape(*patches.shape[:2], -1)


def gram(x: jax.Array, real: jax.Array) -> jax.Array:
    """Return X Xᵀ of features [depth, B, F] minus their mean: [depth, B, B], 0 for padding.

    HSIC₁ does not depend on the mean. Without it, float32 has more digits for the variation. `real`
    is float32 [B], 1 for an image and 0 for padding.
    """
    mean = (x * real[:, None]).sum(1, keepdims=True) / real.sum()
    x = (x - mean) * real[:, None]
    return jnp.einsum("dif,djf->dij", x, x, precision=jax.lax.Precision.HIGHEST)


def u_centered(grams: jax.Array, real: jax.Array) -> jax.Array:
    """U-center Gram matrices [..., B, B]: rows sum to 0, and entries of the diagonal are 0.

    HSIC₁ of two such matrices is one sum of products (Székely and Rizzo 2014), which is accurate in
    float32. The three terms of Song et al. nearly cancel.
    """
    count = real.sum()
    pairs = real[:, None] * real[None, :] * (1 - jnp.eye(len(real)))
    grams = grams * pairs
    rows = grams.sum(-1)
    total = rows.sum(-1)[..., None, None] / jnp.maximum((count - 1) * (count - 2), 1)
    by_row = (rows[..., :, None] + rows[..., None, :]) / jnp.maximum(count - 2, 1)
    return (grams - by_row + total) * pairs


def hsic(
    first: jax.Array, second: jax.Array, real: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return HSIC₁ of (first, second), (first, first), (second, second): [...] each.

    `first` and `second` are U-centered Gram matrices [..., B, B], `real` [B] is as in `gram`.
    """
    count = real.sum()
    scale = jnp.maximum(count * (count - 3), 1)
    pairs = ((first, second), (first, first), (second, second))
    between, of_first, of_second = ((x * y).sum((-2, -1)) / scale for x, y in pairs)
    return between, of_first, of_second
