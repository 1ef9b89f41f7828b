"""Does the black border of digits harm C-MAE with the negatives of the position?

If two images have the same black patch at a position, the negative is equal to the positive. These
two objectives take the loss on half of the positions: the two inner columns of the 4 × 4 patches,
or the two outer ones.

    PYTHONPATH=. occinv reproduce study --scale quickstart --workdir runs/inner --seeds 5 \
        --rows cmae --pretrain.objective.name=benchmarks._columns:InnerCMAE

By itself, the file prints how often two images have the same patch, by its position:

    python benchmarks/_columns.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from occinv.data.embedded import digits
from occinv.models.patches import patchify
from occinv.objectives.base import Terms
from occinv.objectives.cmae import CMAE
from occinv.transforms.view import View

GRID = 4
OUTER = np.tile([True, False, False, True], GRID)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerCMAE(CMAE):
    """C-MAE with the loss on the two inner columns of patches."""

    chosen = ~OUTER

    def measure(self, z1: jax.Array, z2: jax.Array, first: View, second: View) -> Terms:
        return super().measure(z1[:, self.chosen], z2[:, self.chosen], first, second)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OuterCMAE(InnerCMAE):
    """C-MAE with the loss on the two outer columns of patches."""

    chosen = OUTER


def main() -> None:
    """Print the share of pairs of images with the same patch, for each position."""
    images = digits(train=True).images
    patches = np.asarray(patchify(jnp.asarray(images), images.shape[1] // GRID))
    same = np.zeros(len(OUTER))
    for shift in range(1, len(images)):
        same += (patches == np.roll(patches, shift, 0)).all(-1).mean(0)
    print((same / (len(images) - 1)).reshape(GRID, GRID).round(2))


if __name__ == "__main__":
    main()
