"""What the class token attends to, head by head, and pictures of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from occinv.models.vit import ViT
from occinv.transforms.view import normalize

COLORS = "inferno"  # black to yellow, as bright as the value is high


class Attended(NamedTuple):
    """An image, and for each patch the share of the class token's attention that it has."""

    image: np.ndarray  # uint8 [H, W, 3]
    heads: np.ndarray  # float32 [heads, N]

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """`head1`, `head2`, … and their `mean`: float32 [side, side] each, patch by patch."""
        side = round(self.heads.shape[1] ** 0.5)
        named = {f"head{number}": head for number, head in enumerate(self.heads, 1)}
        return {
            name: values.reshape(side, side)
            for name, values in {**named, "mean": self.heads.mean(0)}.items()
        }


@functools.partial(jax.jit, static_argnames="encoder")
def class_attention(encoder: ViT, params: Any, pixels: jax.Array) -> jax.Array:
    """softmax(q · k / √d) of the class token's query and the patches' keys, in every block.

    What `get_last_selfattention` of the official DINO gives for the last block, its first row.

    Args:
      params: those of f alone.
      pixels: float32 [B, H, W, 3] in [0, 1], whole images.

    Returns:
      float32 [depth, B, heads, N], patches in raster order. The sum over N is less than 1: the rest
      is the class token's attention to itself.
    """
    _, found = encoder.apply({"params": params}, normalize(pixels), mutable=["intermediates"])
    (weights,) = found["intermediates"]["blocks"]["scan"]["attention"]["of_class"]
    return weights[..., 1:]


def save_grid(path: Path, attended: Sequence[Attended]) -> None:
    """Writes one PNG: a line for each image, beside it the map of each head and their mean.

    Every map has its own scale, from no attention (black) to its highest share (yellow), which is
    written below it.
    """
    columns = 2 + len(attended[0].heads)
    figure = Figure(figsize=(1.1 * columns, 1.25 * len(attended)), dpi=130, layout="constrained")
    lines = figure.subplots(len(attended), columns, squeeze=False)
    for axes in lines.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    for line, one in zip(lines, attended, strict=True):
        line[0].imshow(one.image)
        for axes, values in zip(line[1:], one.maps.values(), strict=True):
            axes.imshow(values, cmap=COLORS, vmin=0, interpolation="nearest")
            axes.set_xlabel(f"to {100 * values.max():.2g} %", fontsize=6, labelpad=2)
    for axes, name in zip(lines[0], ("image", *attended[0].maps), strict=True):
        axes.set_title(name.replace("head", "head "), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def save_maps(folder: Path, attended: Sequence[Attended], scale: int = 1) -> None:
    """Writes `0_image.png`, `0_head1.png`, …, `0_mean.png`, `1_image.png`, … into `folder`.

    All have the size of the image, `scale` times enlarged; colors as in `save_grid`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(attended):
        height, width = one.image.shape[:2]
        pictures = {"image": one.image} | {n: colored(values) for n, values in one.maps.items()}
        for name, picture in pictures.items():
            enlarged = Image.fromarray(picture).resize(
                (scale * width, scale * height), Image.Resampling.NEAREST
            )
            enlarged.save(folder / f"{number}_{name}.png")


def colored(values: np.ndarray) -> np.ndarray:
    """[side, side] of 0 or more to uint8 [side, side, 3]: black at 0, yellow at the highest."""
    highest = max(values.max(), np.finfo(np.float32).tiny)  # all may go to the class token
    return colormaps[COLORS](values / highest, bytes=True)[..., :3]


def attend(encoder: ViT, params: Any, image: np.ndarray, block: int) -> list[Attended]:
    """`Attended` of each of `image`, uint8 [B, H, W, 3], at block 0 to depth - 1."""
    pixels = jnp.asarray(image, jnp.float32) / 255
    weights = np.asarray(class_attention(encoder, params, pixels)[block])
    return [Attended(*each) for each in zip(image, weights, strict=True)]
