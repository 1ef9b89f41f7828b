"""The smallest codebook: mean patches, fitted in one pass over some of the training images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from occinv.models.patches import patchify
from occinv.models.tokenizers.base import Images, Params, Read, Tokenizer
from occinv.schema import Count, UserError
from occinv.size import sides


@dataclasses.dataclass(frozen=True, kw_only=True)
class KMeans(Tokenizer):
    """The id of a patch is the number of the nearest of `num_ids` mean patches.

    A new run fits the means to its own training images before the first step, by mini-batch
    k-means. They depend on these images and their order, so on the seed.

    Attributes:
      fit_images: The number of images to fit, at most one epoch.
    """

    num_ids: Count = 512
    fit_images: Count = 20_000

    def shapes(self) -> Any:
        values = self.channels * math.prod(sides(self.patch_size))
        return {"means": jax.ShapeDtypeStruct((self.num_ids, values), jnp.float32)}

    def obtain(self, read: Read, images: Images) -> Callable[[], Params]:
        return lambda: {"means": self.fit(images)}

    def fit(self, images: Images) -> np.ndarray:
        """Fit means float32 [num_ids, P]. Raises UserError if there are fewer patches."""
        from sklearn.cluster import MiniBatchKMeans  # slow to import

        clusters = MiniBatchKMeans(self.num_ids, random_state=0, n_init=1)
        waiting: list[np.ndarray] = []
        seen = fitted = 0
        for batch in images():
            unit = jnp.asarray(batch[: self.fit_images - seen], jnp.float32) / 255
            seen += len(unit)
            patches = np.asarray(patchify(unit, self.patch_size))
            waiting.append(patches.reshape(-1, patches.shape[-1]))
            if sum(map(len, waiting)) >= self.num_ids:  # the first means are drawn from this many
                clusters.partial_fit(np.concatenate(waiting))
                fitted, waiting = seen, []
            if seen >= self.fit_images:
                break
        if not fitted:
            raise UserError(
                f"objective.tokenizer.num_ids={self.num_ids}, but the {seen} images have only "
                f"{sum(map(len, waiting))} patches; use fewer ids or more images"
            )
        return clusters.cluster_centers_.astype(np.float32)

    def ids(self, params: Params, pixels: jax.Array) -> jax.Array:
        patches, means = patchify(pixels, self.patch_size), params["means"]
        # |patch - mean|² up to a constant; in full precision on every device.
        product = jnp.einsum("bnp,kp->bnk", patches, means, precision="highest")
        return jnp.argmax(product - jnp.square(means).sum(-1) / 2, axis=-1).astype(jnp.int32)
