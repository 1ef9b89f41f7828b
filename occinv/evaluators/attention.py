"""The attention of the class token to the patches, by head, and pictures of it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from matplotlib import colormaps

from occinv.data.source import Source
from occinv.evaluators.base import Evaluator, Result, Subject, option
from occinv.models.class_attention import class_attention
from occinv.models.vit import ViT
from occinv.schema import Count, UserError
from occinv.size import Grid

COLORS = colormaps["inferno"]  # black to yellow, as bright as the value is high


class Attended(NamedTuple):
    """An image, and the attention of its class token.

    Attributes:
      image: uint8 [H, W, C].
      heads: float32 [heads, N], the share of the attention that each patch gets.
      grid: Rows and columns of the N patches.
    """

    image: np.ndarray
    heads: np.ndarray
    grid: Grid

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """`head1`, `head2`, … and their `mean`: float32 [rows, columns] each, patch by patch."""
        named = {f"head{number}": head for number, head in enumerate(self.heads, 1)}
        named["mean"] = self.heads.mean(0)
        return {name: values.reshape(self.grid) for name, values in named.items()}

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """`image` and every map in color."""
        return {"image": self.image} | {name: colored(values) for name, values in self.maps.items()}

    @property
    def captions(self) -> dict[str, str]:
        """The highest share of every map."""
        return {name: f"to {100 * values.max():.2g} %" for name, values in self.maps.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention(Evaluator):
    """Pictures of the attention of the class token to the patches, for each head."""

    num_images: Count | None = option(8, "Draw N images, spread over the source.")
    block: Annotated[int, Ge(-1000), Le(1000)] = option(
        -1, "Draw this transformer block: 1 is the first, -1 the last."
    )

    def check(self, subject: Subject) -> None:
        depth = subject.encoder.depth
        if not 1 <= abs(self.block) <= depth:
            raise UserError(
                f"block={self.block}, expected 1 to {depth}, or -1 (the last) to -{depth}"
            )

    def measure(self, subject: Subject, images: Source) -> Result:
        index = self.block - 1 if self.block > 0 else subject.encoder.depth + self.block
        params = subject.params["encoder"]
        found = attend(subject.encoder, params, subject.one_batch(images).image, index)
        return Result(
            {},
            f"{len(found)} images",
            pictures=[one.pictures for one in found],
            captions=[one.captions for one in found],
        )


def colored(values: np.ndarray) -> np.ndarray:
    """Color [h, w] from 0 (black) to its highest value (yellow): uint8 [h, w, 3]."""
    highest = max(values.max(), np.finfo(np.float32).tiny)  # patches may get no attention at all
    return COLORS(values / highest, bytes=True)[..., :3]


def attend(encoder: ViT, params: Any, image: np.ndarray, block: int) -> list[Attended]:
    """Return the attention in each of `image`, uint8 [B, H, W, C], at block 0 to depth - 1."""
    pixels = jnp.asarray(image, jnp.float32) / 255
    weights = np.asarray(class_attention(encoder, params, pixels)[block])
    return [Attended(*each, encoder.grid) for each in zip(image, weights, strict=True)]
