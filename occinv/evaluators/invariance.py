"""Occlusion invariance (Figure 1): how alike the features of full and occluded images are.

Three measures, each 1 for equal features and about 0 for unrelated ones:

    CKA = Σ_b HSIC₁(K_b, L_b) / sqrt(Σ_b HSIC₁(K_b, K_b) · Σ_b HSIC₁(L_b, L_b))

over minibatches b, with K = X Xᵀ and L = Y Yᵀ. HSIC₁ is the unbiased estimator of Song et al.
(2012, Eq. 5), so that the value does not grow as batches shrink. The sums of Nguyen et al. (2021,
"Do wide and deep networks learn the same things?", Eq. 3) need one pass over the images.

    retrieval = the share of occluded images whose nearest full image in the minibatch is their own

    cosine = (same - other) / (1 - other)

with the mean cosine of an occluded image and its `same` full image, or any `other` one.

None of them depends on a rotation or the scale of the features. Each is measured for features of
the whole image (the class token and the mean patch token) and for its patch tokens. Tokens mislead:
those that exchange no information are alike without any learning, so an untrained encoder has a
token-wise CKA close to 1. Therefore the headline is the token that the objective trains, and every
result has a floor: the same measures of untrained encoders of the same shape, and of one whose
patch projection is zero, which is blind to the image.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from occinv.data.batch import Batch
from occinv.data.source import Source
from occinv.evaluators import quoted_place
from occinv.evaluators.base import Evaluator, Result, Subject, option, token_of
from occinv.evaluators.occlusion import check_occlusion, draw_visible, put_rng
from occinv.evaluators.similarity import (
    MIN_BATCH,
    cosine_matrix,
    gram,
    hsic,
    relative_cosine,
    retrieved,
    u_centered,
    u_centered_tokens,
)
from occinv.models.blocks import Layout
from occinv.models.decoder import restore
from occinv.models.vit import ViT
from occinv.parallel import fetch, make_mesh, put_batch, replicated
from occinv.schema import Count, Natural, Rate, Seed, UserError
from occinv.transforms.view import unit_range

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
# The features of an image. `tokens`: the visible patch tokens, concatenated, centered at their
# positions. `uncentered_tokens`: without that, so that the positions themselves are alike.
FEATURES = ("class", "mean", "tokens", "uncentered_tokens")
MEASURES = ("cka", "retrieval", "cosine")

Removed = Literal["drop", "mask_token"]

logger = logging.getLogger("occinv.evaluators")


class Curves(NamedTuple):
    """The likeness of features of full and occluded images.

    Attributes:
      ratios: The R shares of removed patches.
      blocks: 1 to depth.
      cka, retrieval, cosine: float64 [R, depth] by feature. 0 where features do not vary over the
        images. An unbiased estimate can be slightly below 0. Retrieval and cosine have no entry
        for `uncentered_tokens`: theirs for `tokens` are without centering.
      images: The number of measured images.
      chance: The retrieval of features that say nothing of the image.
    """

    ratios: tuple[float, ...]
    blocks: tuple[int, ...]
    cka: dict[str, np.ndarray]
    retrieval: dict[str, np.ndarray]
    cosine: dict[str, np.ndarray]
    images: int
    chance: float

    def headline(self, measure: str, token: str) -> float:
        """Return the value at the last block, at the ratio of `quoted_place`."""
        return float(getattr(self, measure)[token][quoted_place(self.ratios), -1])

    def as_json(self) -> dict[str, Any]:
        """Return all fields in JSON's types."""
        fields = self._asdict()
        for measure in MEASURES:
            fields[measure] = {n: v.tolist() for n, v in getattr(self, measure).items()}
        return fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Invariance(Evaluator):
    """CKA, retrieval and cosine between features of full and occluded images, with their floor."""

    ratios: tuple[Rate, ...] = option(RATIOS, "Remove these shares of the patches.")
    removed: Removed = option(
        "drop", "Drop removed patches, or put the mask token of the encoder in their place."
    )
    seed: Seed = option(0, "Draw the removed patches from this seed.")
    batch_size: Count = option(128, "Images in a minibatch of the estimators.")
    untrained: Natural = option(
        2, "Number of untrained encoders to measure as the floor.", is_protocol=False
    )
    floors: dict[Any, dict[str, Curves]] = dataclasses.field(
        default_factory=dict, init=False, compare=False, repr=False
    )  # by shape and images: runs of one shape share their floor

    def check(self, subject: Subject) -> None:
        check_occlusion(subject.encoder, self.ratios, self.removed)

    def measure(self, subject: Subject, images: Source) -> Result:
        encoder, token = plain(subject.encoder, self.removed), token_of(subject.objective)

        def curves(params: Any) -> Curves:
            batches = subject.batches(images, self.batch_size)
            return invariance_curves(
                encoder, params, batches, self.ratios, seed=self.seed, mesh=subject.mesh
            )

        own = curves(subject.params["encoder"])
        key = encoder, images.name, len(images), subject.data
        if key not in self.floors:
            fresh = {
                f"untrained {seed}": untrained(encoder, seed) for seed in range(self.untrained)
            }
            fresh["blind"] = blind(untrained(encoder, 0))
            self.floors[key] = {name: curves(params) for name, params in fresh.items()}
        floor = self.floors[key]
        values = {measure: own.headline(measure, token) for measure in MEASURES}
        lowest, highest = (
            {m: extreme(c.headline(m, token) for c in floor.values()) for m in MEASURES}
            for extreme in (min, max)
        )
        ranges = "; ".join(
            f"{name} {values[name]:z.3f} (floor {lowest[name]:z.3f} to {highest[name]:z.3f})"
            for name in MEASURES
        )
        text = (
            f"{ranges}; {token} token, last block, {self.ratios[quoted_place(self.ratios)]:.0%} of "
            f"the patches removed; {own.images} images, chance of retrieval {own.chance:.3f}"
        )
        values |= {f"{name}_floor": value for name, value in highest.items()}
        return Result(
            values,
            text,
            details={
                "token": token,  # no fact of the protocol: each objective is judged by its own
                **own.as_json(),
                "floor": {n: c.as_json() for n, c in floor.items()},
            },
        )


def plain(encoder: ViT, removed: Removed = "drop") -> ViT:
    """Return the encoder without the options that the outputs of its blocks do not depend on.

    Models of one shape then share one compiled program and one floor.
    """
    return encoder.clone(
        final_norm=False,
        drop_path=0.0,
        train_patch=True,
        train_position=False,
        mask_token=removed == "mask_token",
        layout=Layout(unroll=1),  # the blocks are compiled once for each ratio; a loop is short
    )


def untrained(encoder: ViT, seed: int) -> Any:
    """Return initial parameters of an encoder."""
    black = jnp.zeros((1, *encoder.image_shape))
    return jax.jit(encoder.init)(jax.random.key(seed), black)["params"]


def blind(params: Any) -> Any:
    """Return an encoder's parameters with a patch projection of zero: it sees positions only."""
    return {**params, "patch_embed": jax.tree.map(jnp.zeros_like, params["patch_embed"])}


def invariance_curves(
    encoder: ViT,
    params: Any,
    batches: Iterable[Batch],
    ratios: Sequence[float] = RATIOS,
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Curves:
    """Measure the likeness of full and occluded images after each block.

    The removed patches depend on (seed, ratio, the image's index) alone. Padding does not count. A
    batch of fewer than 4 images has no unbiased estimate; it is left out with a warning. A smaller
    last batch is weighted by its number of images.

    Args:
      encoder: f, as `plain` returns it.
      params: The parameters of f alone.
      batches: This process's rows of the global batches, which are read once.
      ratios: Shares of patches to remove, in (0, 1).
      seed: The seed of the masks.
      mesh: The devices that share a batch; None: the first one.

    Raises:
      UserError: No batch has 4 images.
    """
    mesh = mesh or make_mesh(jax.local_devices()[:1])
    unused = {"norm"} if encoder.mask_token else {"norm", "mask_token"}
    used = {name: value for name, value in params.items() if name not in unused}
    used, rng = jax.device_put(used, replicated(mesh)), put_rng(mesh, seed)
    sums: Any = None
    images = left_out = count_of_batches = 0
    for batch in batches:
        found, number = fetch(
            _measure(used, put_batch(mesh, batch), rng, encoder, tuple(ratios), mesh)
        )
        count = round(number.item())
        if count < MIN_BATCH:
            left_out += count
            continue
        weighted = jax.tree.map(lambda x: count * x.astype(np.float64), found)  # noqa: B023
        sums = weighted if sums is None else jax.tree.map(np.add, sums, weighted)
        images, count_of_batches = images + count, count_of_batches + 1
    if left_out:
        logger.warning(
            "CKA leaves out %d images of batches with fewer than %d", left_out, MIN_BATCH
        )
    if not images:
        raise UserError(f"found {left_out} images, but CKA needs a batch of at least {MIN_BATCH}")
    cka = {}
    for name, (between, of_full, of_occluded) in sums["hsic"].items():
        scale = np.sqrt(of_full * of_occluded)
        cka[name] = np.divide(between, scale, out=np.zeros_like(scale), where=scale > 0)
    retrieval, cosine = ({n: v / images for n, v in sums[key].items()} for key in MEASURES[1:])
    blocks = tuple(range(1, encoder.depth + 1))
    chance = count_of_batches / images
    return Curves(tuple(ratios), blocks, cka, retrieval, cosine, images, chance)


@functools.partial(jax.jit, static_argnames=("encoder", "ratios", "mesh"))
def _measure(
    params: Any, batch: Batch, rng: jax.Array, encoder: ViT, ratios: tuple[float, ...], mesh: Mesh
) -> tuple[dict[str, dict[str, jax.Array]], jax.Array]:
    """Return the measures of a batch by name and feature, and its number of images [].

    `hsic` is [3, R, depth]: of (full, occluded), and of each with itself. Others are [R, depth].
    """
    pixels = unit_range(batch.image)
    real = (batch.weight > 0).astype(jnp.float32)

    def blocks_of(*visible: Any) -> jax.Array:
        found: Any = encoder.apply({"params": params}, pixels, *visible)
        return found.blocks.astype(jnp.float32)

    full = blocks_of()
    masks = zip(*draw_visible(rng, batch.index, encoder.num_patches, ratios), strict=True)
    results = [compare(full, blocks_of(visible, kept), visible, real) for visible, kept in masks]
    # Ratios are the axis before the blocks.
    stacked = jax.tree.map(lambda *each: jnp.stack(each, -2), *results)
    return jax.lax.with_sharding_constraint((stacked, real.sum()), replicated(mesh))


def compare(
    full: jax.Array, occluded: jax.Array, visible: jax.Array, real: jax.Array
) -> dict[str, dict[str, jax.Array]]:
    """Return `hsic` [3, depth], `retrieval` [depth] and `cosine` [depth] by feature.

    Args:
      full, occluded, visible: As in `features`.
      real: float32 [B], 1 for an image and 0 for padding.
    """
    found: dict[str, dict[str, jax.Array]] = {"hsic": {}, "retrieval": {}, "cosine": {}}
    for name, (x, y) in features(full, occluded, visible).items():
        if name == "tokens":
            grams = [u_centered_tokens(tokens, visible, real) for tokens in (x, y)]
        else:
            grams = [u_centered(gram(feature, real), real) for feature in (x, y)]
        found["hsic"][name] = jnp.stack(hsic(grams[0], grams[1], real))
        if name == "tokens":
            continue  # cosines are those of the tokens as they are
        shown = visible if name == "uncentered_tokens" else None
        cosines = cosine_matrix(y, full[:, :, 1:] if shown is not None else x, shown)
        key = "tokens" if shown is not None else name
        found["retrieval"][key] = retrieved(cosines, real)
        found["cosine"][key] = relative_cosine(cosines, real)
    return found


def features(
    full: jax.Array, occluded: jax.Array, visible: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return the features of full and occluded images by the names of `FEATURES`.

    Args:
      full: float32 [depth, B, 1 + N, D].
      occluded: float32 [depth, B, 1 + n, D], with all n = N patches or only the K visible ones.
      visible: bool [B, N].

    Returns:
      Pairs of float32 [depth, B, F], for `tokens` [depth, B, N, D]. Removed patches are 0.
    """
    shown = visible[None, :, :, None].astype(jnp.float32)
    patches = occluded[:, :, 1:]
    if patches.shape[2] != visible.shape[1]:
        patches = jax.vmap(restore, (0, None, None))(patches, visible, jnp.float32(0))
    tokens = full[:, :, 1:] * shown, patches * shown
    flat = [x.reshape(*x.shape[:2], -1) for x in tokens]
    return {
        "class": (full[:, :, 0], occluded[:, :, 0]),
        "mean": (full[:, :, 1:].mean(2), occluded[:, :, 1:].mean(2)),
        "tokens": tokens,
        "uncentered_tokens": (flat[0], flat[1]),
    }
