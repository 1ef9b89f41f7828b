"""Reconstruction quality: PSNR in dB, as in the paper's Table 1."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from occinv.data.batch import Batch
from occinv.data.source import Source
from occinv.evaluators.base import Evaluator, Result, Subject, option
from occinv.evaluators.occlusion import draw_visible, put_rng
from occinv.losses.reconstruction import mean_over
from occinv.models.patches import patchify
from occinv.objectives.base import Objective, Reconstruction, Reconstructs, Setting
from occinv.parallel import fetch, make_mesh, put_batch, replicated
from occinv.schema import Count, Seed, UserError
from occinv.transforms.view import unit_range

SMALLEST_MSE = 1e-10


@runtime_checkable
class ReconstructsMasked(Reconstructs, Protocol):
    """An objective that reconstructs an image from the patches that its masking keeps."""

    setting: Setting
    mask_ratio: float
    normalize_target: bool  # the true mean and deviation of each patch then un-normalize it


class Decibels(NamedTuple):
    """Mean PSNR over images.

    Attributes:
      whole, removed: In dB, as defined in `reconstruction_psnr`.
      images: The number of images.
    """

    whole: float
    removed: float
    images: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Psnr(Evaluator):
    """The PSNR of reconstructions in dB (Table 1), at the objective's own mask ratio."""

    seed: Seed = option(0, "Draw the removed patches from this seed.")
    batch_size: Count = option(128, "Images in a batch.", is_protocol=False)

    def check(self, subject: Subject) -> None:
        reconstructing(subject.objective)

    def measure(self, subject: Subject, images: Source) -> Result:
        model, batches = reconstructing(subject.objective), subject.batches(images, self.batch_size)
        found = reconstruction_psnr(
            subject.objective, subject.params, batches, seed=self.seed, mesh=subject.mesh
        )
        text = (
            f"{found.whole:.2f} dB over whole images with visible patches pasted, "
            f"{found.removed:.2f} dB over removed patches; {found.images} images"
        )
        made = {"mask_ratio": model.mask_ratio, "normalized_target": model.normalize_target}
        return Result({"whole": found.whole, "removed": found.removed}, text, made=made)


def reconstruction_psnr(
    objective: Objective,
    params: Any,
    batches: Iterable[Batch],
    *,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Decibels:
    """Measure the PSNR of an objective's reconstructions at its own mask ratio.

    The mean over images of 10 · log10(1 / MSE), with pixels in [0, 1] and predictions clipped to
    that range. The MSE of an image is taken

    - `whole`: over all its pixels, with the visible patches pasted, as MAE's demo shows it;
    - `removed`: over the pixels of removed patches only. This PSNR is lower by 10 · log10 of N over
      the number of removed patches.

    An MSE below 1e-10 counts as 1e-10, so that a perfect image has 100 dB instead of infinitely
    many. The masks depend on (seed, the image's index) alone. Padding does not count.

    Raises:
      UserError: The objective does not reconstruct pixels, or there is no image.
    """
    model = reconstructing(objective)
    mesh = mesh or make_mesh(jax.local_devices()[:1])
    params, rng = jax.device_put(params, replicated(mesh)), put_rng(mesh, seed)
    total = np.zeros(3)
    for batch in batches:
        total += fetch(_sums(params, put_batch(mesh, batch), rng, model, mesh))
    whole, removed, count = total.tolist()
    if not count:
        raise UserError("found no image, but PSNR needs at least 1")
    return Decibels(whole / count, removed / count, round(count))


@functools.partial(jax.jit, static_argnames=("model", "mesh"))
def _sums(
    params: Any, batch: Batch, rng: jax.Array, model: ReconstructsMasked, mesh: Mesh
) -> jax.Array:
    """Sum both PSNRs over the images of a batch, and count these: [3]."""
    shown, visible = reconstruct(model, params, batch, rng)
    difference = shown.reconstructed - shown.original
    squared = patchify(jnp.square(difference), model.setting.encoder.patch_size).mean(-1)
    decibels = [psnr(squared.mean(1)), psnr(mean_over(squared, ~visible))]
    real = batch.weight > 0
    sums = [jnp.where(real, value, 0.0).sum() for value in (*decibels, jnp.float32(1))]
    return jax.lax.with_sharding_constraint(jnp.stack(sums), replicated(mesh))


def reconstruct(
    model: ReconstructsMasked, params: Any, batch: Batch, rng: jax.Array
) -> tuple[Reconstruction, jax.Array]:
    """Reconstruct every image of a batch from random patches, and return these: bool [B, N]."""
    count, ratios = model.setting.encoder.num_patches, (model.mask_ratio,)
    (visible,), _ = draw_visible(rng, batch.index, count, ratios)
    return model.reconstruct(params, unit_range(batch.image), visible), visible


def psnr(mse: jax.Array) -> jax.Array:
    """Return 10 · log10(1 / mse) in dB for pixels in [0, 1], at most 100."""
    return -10 * jnp.log10(jnp.maximum(mse, SMALLEST_MSE))


def reconstructing(objective: Objective) -> ReconstructsMasked:
    """Return the objective itself; raise UserError if it does not reconstruct masked images."""
    if not isinstance(objective, ReconstructsMasked):
        raise UserError(
            f"the objective {type(objective).__name__} does not reconstruct pixels of masked "
            "patches; use a run with a decoder, such as one of mae or rmae"
        )
    return objective
