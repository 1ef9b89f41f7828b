"""Reconstruction quality: PSNR in dB, as in the paper's Table 1."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from occinv.data.batch import Batch
from occinv.evaluators.occlusion import draw_visible
from occinv.losses.losses import mean_over
from occinv.models.patches import patchify
from occinv.models.vit import ViT
from occinv.objectives.base import Objective
from occinv.objectives.mae import Reconstruction
from occinv.parallel import fetch, make_mesh, put_batch, replicated
from occinv.schema import UserError
from occinv.transforms.view import unit_range

SMALLEST_MSE = 1e-10


@runtime_checkable
class Reconstructs(Protocol):
    """An objective that can show what it believes lies under the removed patches."""

    mask_ratio: float
    normalize_target: bool

    @property
    def encoder(self) -> ViT:
        """f."""

    def reconstruct(self, params: Any, pixels: jax.Array, visible: jax.Array) -> Reconstruction:
        """As `MAE.reconstruct`."""


class Psnr(NamedTuple):
    """Mean PSNR of the images, in dB, and what it was measured on.

    `whole` and `removed` are defined in `reconstruction_psnr`.
    """

    whole: float
    removed: float
    images: int
    mask_ratio: float
    normalized_target: bool  # then the true mean and deviation of each patch are given back to it


def reconstruction_psnr(
    objective: Objective,
    params: Any,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Psnr:
    """PSNR of the objective's reconstructions at its own mask ratio, in one pass over `batches`.

    The mean over images of 10 · log10(1 / MSE), with pixels in [0, 1] and predictions clipped to
    that range. The MSE of an image is taken

    - `whole`: over all its pixels, with the visible patches pasted (as MAE's demo shows it);
    - `removed`: over the pixels of removed patches only, which is lower by 10 · log10 of N over
      the number of removed patches.

    An MSE below 1e-10 counts as 1e-10, so that a perfect image has 100 dB and not infinitely many.
    Masks follow from (seed, the image's index); padding counts nowhere.

    Raises:
      UserError: the objective does not reconstruct pixels, or there is no image.
    """
    model = reconstructing(objective)
    mesh = mesh or make_mesh(jax.local_devices()[:1])
    params, key = jax.device_put((params, jax.random.key(seed)), replicated(mesh))
    total = np.zeros(3)
    for batch in batches:
        total += fetch(_sums(params, put_batch(mesh, batch), key, model, mesh))
    whole, removed, count = total.tolist()
    if not count:
        raise UserError("PSNR needs an image or more, found none")
    return Psnr(
        whole / count, removed / count, round(count), model.mask_ratio, model.normalize_target
    )


@functools.partial(jax.jit, static_argnames=("model", "mesh"))
def _sums(params: Any, batch: Batch, key: jax.Array, model: Reconstructs, mesh: Mesh) -> jax.Array:
    """Over the images of a batch: PSNR of the whole and of removed patches, and their number."""
    pixels = unit_range(batch.image)
    ratios = (model.mask_ratio,)
    (visible,), _ = draw_visible(key, batch.index, model.encoder.num_patches, ratios)
    shown = model.reconstruct(params, pixels, visible).reconstructed
    squared = patchify(jnp.square(shown - pixels), model.encoder.patch_size).mean(-1)
    decibels = [psnr(squared.mean(1)), psnr(mean_over(squared, ~visible))]
    real = batch.weight > 0
    sums = [jnp.where(real, value, 0.0).sum() for value in (*decibels, jnp.float32(1))]
    return jax.lax.with_sharding_constraint(jnp.stack(sums), replicated(mesh))


def psnr(mse: jax.Array) -> jax.Array:
    """10 · log10(1 / mse) in dB for pixels in [0, 1], at most 100."""
    return -10 * jnp.log10(jnp.maximum(mse, SMALLEST_MSE))


def reconstructing(objective: Objective) -> Reconstructs:
    """The objective itself. Raises UserError if it does not reconstruct pixels."""
    if not isinstance(objective, Reconstructs):
        raise UserError(
            f"the objective {type(objective).__name__} does not reconstruct pixels; expected one "
            "with a decoder, such as mae or rmae"
        )
    return objective
