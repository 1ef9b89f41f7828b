"""Occlusion invariance, Figure 1: linear CKA between the full image and the same image occluded.

    CKA = Σ_b HSIC₁(K_b, L_b) / sqrt(Σ_b HSIC₁(K_b, K_b) · Σ_b HSIC₁(L_b, L_b))

over minibatches b, with K = X Xᵀ and L = Y Yᵀ. HSIC₁ is the unbiased estimator of Song et al.
(2012, Eq. 5), so that the value does not grow as batches shrink, and the sums of Nguyen et al.
(2021, "Do wide and deep networks learn the same things?", Eq. 3) need one pass and no memory of
the images gone by.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

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
from occinv.transforms.view import normalize, unit_range

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FEWEST = 4  # images in a batch: HSIC₁ divides by n - 3

Tokens = Literal["visible", "mean", "class"]
Removed = Literal["drop", "mask_token"]

log = logging.getLogger("occinv.evaluators")


@dataclasses.dataclass(frozen=True)
class Curves:
    """CKA between the features of full and occluded images.

    Attributes:
      ratios: the R fractions of patches that were removed.
      blocks: 1 .. depth.
      values: float64 [R, depth], 1 where the features are alike. NaN where features do not vary
        over the images. An unbiased estimate can be slightly below 0.
      images: how many images were measured.
    """

    ratios: tuple[float, ...]
    blocks: tuple[int, ...]
    values: np.ndarray
    images: int

    def as_json(self) -> dict[str, Any]:
        """The attributes in JSON's types; NaN becomes None."""
        values = [[v if np.isfinite(v) else None for v in row] for row in self.values.tolist()]
        return {
            "ratios": list(self.ratios),
            "blocks": list(self.blocks),
            "values": values,
            "images": self.images,
        }


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Plain linear CKA of all images at once (Kornblith et al. 2019, Eqs. 3 and 4), in float64.

    Biased upwards where there are few images for the number of features; kept as the reference.

    Args:
      x, y: features [n, ...] of the same n images, flattened per image.
    """
    first, second = (_flat_centered(features) for features in (x, y))
    cross = (first * second).sum()
    return float(cross / np.sqrt((first * first).sum() * (second * second).sum()))


def _flat_centered(features: np.ndarray) -> np.ndarray:
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    flat = flat - flat.mean(0)
    return flat @ flat.T


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
    """Linear CKA between full and occluded images after each block, in one pass over `batches`.

    Which patches are removed follows from (seed, ratio, the image's index) alone. Padding, images
    of weight 0, counts nowhere. A batch of fewer than 4 images has no unbiased estimate: it is
    left out, with a warning. A smaller last batch weighs as much as it has images.

    Args:
      encoder, params: f and its own parameters (`Trained.params["encoder"]`).
      batches: of images of the encoder's size; this process's rows of the global batches.
      ratios: fractions of patches to remove, in (0, 1).
      tokens: what the features of an image are. `visible`: the patch tokens seen in the occluded
        image, side by side, and the same positions of the full one. `mean`: the mean of the patch
        tokens that the encoder returns, all of them for the full image. `class`: the class token.
      removed: whether removed patches are dropped (for every model), or replaced by the mask token
        of an encoder that was trained with one.
      mesh: the devices that share a batch; None: the first one.

    Raises:
      UserError: an unknown choice, a ratio outside (0, 1) or without patches left, no mask token,
        or no batch of 4 images.
    """
    _check(encoder, ratios, tokens, removed)
    mesh = mesh or make_mesh(jax.local_devices()[:1])
    # One form for all, so that models of one size share one compiled program: norm and drop path
    # have no part in the blocks' outputs, and a mask token none where patches are dropped.
    plain = encoder.clone(
        final_norm=False,
        drop_path=0.0,
        train_position=False,
        mask_token=removed == "mask_token",
        layout=Layout(unroll=1),  # there is a program part for each ratio, which a loop keeps short
    )
    unused = {"norm"} if plain.mask_token else {"norm", "mask_token"}
    used = {name: value for name, value in params.items() if name not in unused}
    used, key = jax.device_put((used, jax.random.key(seed)), replicated(mesh))

    sums = np.zeros((3, len(ratios), encoder.depth))
    images = left_out = 0
    for batch in batches:
        values, number = fetch(
            _hsic(used, put_batch(mesh, batch), key, plain, tuple(ratios), tokens, mesh)
        )
        count = round(number.item())
        if count < FEWEST:
            left_out += count
            continue
        sums += count * values.astype(np.float64)
        images += count
    if left_out:
        log.warning("CKA leaves out %d images of batches with fewer than %d", left_out, FEWEST)
    if not images:
        raise UserError(f"CKA needs a batch of {FEWEST} images or more, found {left_out} images")
    between, of_full, of_occluded = sums
    scale = np.sqrt(of_full * of_occluded)
    values = np.divide(between, scale, out=np.full_like(scale, np.nan), where=scale > 0)
    return Curves(tuple(ratios), tuple(range(1, encoder.depth + 1)), values, images)


def _check(encoder: ViT, ratios: Sequence[float], tokens: str, removed: str) -> None:
    for name, value, choices in (
        ("tokens", tokens, get_args(Tokens)),
        ("removed", removed, get_args(Removed)),
    ):
        if value not in choices:
            raise UserError(f"{name}={value!r} is not a choice{nearest(str(value), choices)}")
    if removed == "mask_token" and not encoder.mask_token:
        raise UserError(
            "removed='mask_token': this encoder was trained without a mask token; use "
            "removed='drop'"
        )
    if not ratios:
        raise UserError("no drop ratio given, expected one or more in (0, 1)")
    for ratio in ratios:
        kept_patches(encoder.num_patches, ratio)


@functools.partial(jax.jit, static_argnames=("encoder", "ratios", "tokens", "mesh"))
def _hsic(
    params: Any,
    batch: Batch,
    key: jax.Array,
    encoder: ViT,
    ratios: tuple[float, ...],
    tokens: Tokens,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """HSIC₁ of (full, occluded), (full, full), (occluded, occluded): [3, R, depth]; and n []."""
    pixels = normalize(unit_range(batch.image))
    real = (batch.weight > 0).astype(jnp.float32)
    full = encoder.apply({"params": params}, pixels).blocks  # type: ignore[union-attr]
    visible, kept = draw_visible(key, batch.index, encoder.num_patches, ratios)
    grams = []
    for seen, count in zip(visible, kept, strict=True):
        occluded = encoder.apply({"params": params}, pixels, seen, count).blocks  # type: ignore[union-attr]
        ids = visible_ids(seen, count)
        grams += [gram(features(blocks, ids, tokens), real) for blocks in (full, occluded)]
    centered = u_centered(jnp.stack(grams), real)
    result = jnp.stack(hsic(centered[0::2], centered[1::2], real)), real.sum()
    return jax.lax.with_sharding_constraint(result, replicated(mesh))


def features(blocks: jax.Array, ids: jax.Array, tokens: Tokens) -> jax.Array:
    """The features of each image after each block: float32 [depth, B, F].

    Args:
      blocks: [depth, B, 1 + n, D], with n = N tokens, or only the K visible ones.
      ids: int32 [B, K], the visible patches in raster order.
      tokens: see `cka_curves`.
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
    """X Xᵀ of features [depth, B, F] less their mean: [depth, B, B], 0 for padding.

    HSIC₁ does not see the mean; without it float32 keeps its digits for what varies.

    Args:
      real: float32 [B], 1 for an image and 0 for padding.
    """
    mean = (x * real[:, None]).sum(1, keepdims=True) / real.sum()
    x = (x - mean) * real[:, None]
    return jnp.einsum("dif,djf->dij", x, x, precision=jax.lax.Precision.HIGHEST)


def u_centered(grams: jax.Array, real: jax.Array) -> jax.Array:
    """U-center Gram matrices [..., B, B]: rows sum to 0 and so does the diagonal, entry by entry.

    HSIC₁ of two such is a mere product (Székely and Rizzo 2014), which float32 bears, where Song's
    three terms nearly cancel.
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
    """HSIC₁ of (first, second), (first, first), (second, second), U-centered [..., B, B]: [...]."""
    count = real.sum()
    scale = jnp.maximum(count * (count - 3), 1)
    pairs = ((first, second), (first, first), (second, second))
    between, of_first, of_second = ((x * y).sum((-2, -1)) / scale for x, y in pairs)
    return between, of_first, of_second
