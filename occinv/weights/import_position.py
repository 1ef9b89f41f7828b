"""Reads sizes, tokens before the patches, and positions of a ViT from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from occinv.schema import UserError
from occinv.size import Grid, Size, divides, grid_of, shortest, sides, size_text
from occinv.weights.grids import SINCOS_TABLES, Rows, find_rows, table_grid
from occinv.weights.pytorch_names import ArrayReader, Tree

IMAGE_SIZE = 224  # of a checkpoint that does not state it
MAX_SIDE = 1024  # of a position embedding that is computed
TABLE = "relative_position_bias_table"


class Sizes(NamedTuple):
    """The sizes of a ViT.

    Attributes:
      width: D.
      channels: Those of an image.
      patch_size: Pixels a side of a patch, or its height and width.
      grid: Rows and columns of patches in an image.
      first: Rows of the position embedding before those of the patches.
    """

    width: int
    channels: int
    patch_size: Size
    grid: Grid
    first: int

    @property
    def patch_values(self) -> int:
        """The number of values of a patch."""
        return self.channels * math.prod(sides(self.patch_size))

    @property
    def image_size(self) -> Size:
        """Pixels a side of an image, or its height and width."""
        (rows, columns), (h, w) = self.grid, sides(self.patch_size)
        return shortest((rows * h, columns * w))


def read_sizes(
    reader: ArrayReader, metadata: Mapping[str, str], grid: Grid | None, origin: str
) -> Sizes:
    """Return the sizes of a ViT, with the grid as given, in the metadata, or of its positions.

    Raises:
      UserError: The patch embedding is not of images, or the grid is not known.
    """
    shape = reader.shape("patch_embed.proj.weight")
    if len(shape) != 4 or 0 in shape:
        raise UserError(
            f"the patch embedding has shape {list(shape)} in PyTorch's layout. Expected "
            "[width, channels, height, width of a patch]."
        )
    width, channels, *patch = shape
    patch_size = shortest((patch[0], patch[1]))

    def found(grid: Grid, first: int) -> Sizes:
        return Sizes(width, channels, patch_size, grid, first)

    grid = grid or _stored_grid(metadata, patch_size)
    if "pos_embed" in reader:
        rows = _rows(reader, "pos_embed", _first_rows(reader, origin), grid)
        return found(*rows)
    tables = [name for name in reader.arrays if name.endswith(TABLE)]
    if tables:
        count = reader.shape(tables[0], 2)[0]
        return found(table_grid(tables[0], count, grid), 0)
    if "decoder_pos_embed" in reader:
        return found(*_rows(reader, "decoder_pos_embed", (1,), grid))
    if grid is None:
        if not divides(patch_size, IMAGE_SIZE):
            raise UserError(
                f"the file has no position embedding, and patches of {size_text(patch_size)} "
                f"pixels do not divide images of {size_text(IMAGE_SIZE)}. Pass --grid HxW."
            )
        reader.report.notes.append(
            f"data.image_size: {IMAGE_SIZE} (assumed: the file has no position embedding)"
        )
        grid = grid_of(IMAGE_SIZE, patch_size)
    if max(grid) > MAX_SIDE:
        raise UserError(
            f"the grid has {max(grid)} patches a side and no position embedding. Expected "
            f"{MAX_SIDE} or fewer: pass --grid HxW."
        )
    return found(grid, 1)


def _stored_grid(metadata: Mapping[str, str], patch_size: Size) -> Grid | None:
    """Return the grid of the image size in the metadata, `32` or `32x48`; None if it lacks it."""
    if "image_size" not in metadata:
        return None
    height, _, width = metadata["image_size"].partition("x")
    named = {"height": height, "width": width or height}
    size = read_number(named, "height") or 0, read_number(named, "width") or 0
    if not divides(patch_size, size):
        raise UserError(
            f"image_size {metadata['image_size']} is not divisible by patches of "
            f"{size_text(patch_size)} pixels. Expected a multiple."
        )
    return grid_of(size, patch_size)


def _first_rows(reader: ArrayReader, origin: str) -> tuple[int, ...]:
    """Return how many rows of the position embedding may precede the patches, the usual first."""
    has_class = int("cls_token" in reader)
    if origin == "big_vision":  # its current code adds positions before the class token
        count = reader.shape("pos_embed", 3)[1]
        return (0, has_class) if math.isqrt(count) ** 2 == count else (has_class, 0)
    if origin == "timm":  # `no_embed_class` or not
        registers = reader.shape("reg_token", 3)[1] if "reg_token" in reader else 0
        return (has_class + registers, 0) if has_class + registers else (0,)
    return (has_class,)


def _rows(reader: ArrayReader, name: str, first: tuple[int, ...], grid: Grid | None) -> Rows:
    shape = reader.shape(name)
    if len(shape) != 3 or shape[0] != 1:
        raise UserError(f"{name} has shape {list(shape)}. Expected [1, 1 + N, width].")
    return find_rows(name, shape[1], first, grid)


def tokens_and_position(reader: ArrayReader, sizes: Sizes, origin: str) -> Tree:
    """Return the class token, registers, and position embedding or table of a ViT."""
    found: Tree = {}
    width = sizes.width
    if has_class := "cls_token" in reader:
        found["class_token"] = reader.vector("cls_token", width)
    if name := registers_name(reader):
        found["registers"] = reader.take(name, 1, reader.shape(name, 3)[1], width)[0]
    if tables := [name for name in reader.arrays if name.endswith(TABLE)]:
        if "pos_embed" in reader:
            raise UserError("the ViT has absolute and relative positions. Expected one of them.")
        shape = reader.shape(tables[0])
        if f"rel_pos_bias.{TABLE}" not in tables:
            tables = [f"blocks.{i}.attn.{TABLE}" for i in range(reader.depth("blocks"))]
        found["relative_position"] = np.stack([reader.take(name, *shape) for name in tables])
        return found
    first = sizes.first
    position = read_position(reader, "pos_embed", width, sizes.grid, first, origin)
    if first > int(has_class):  # rows of the registers, after that of the class token
        found["registers"] = found["registers"] + position[int(has_class) : first]
    row = position[:1] if first and has_class else np.zeros((1, width), np.float32)
    if has_class and not first:
        reader.report.missing["the class token's row of pos_embed"] = "zeros"
    found["position"] = np.concatenate([row, position[first:]])
    return found


def read_position(
    reader: ArrayReader, name: str, width: int, grid: Grid, first: int, origin: str
) -> np.ndarray:
    """Return a position embedding [first + N, D]: of the file, or the fixed table of the origin."""
    if name in reader:
        rows = reader.shape(name)[-2]
        if rows != first + math.prod(grid):
            raise UserError(
                f"{name} has {rows} rows. Expected {first} + {size_text(grid)}, as pos_embed."
            )
        return reader.take(name, 1, rows, width)[0]
    if origin not in SINCOS_TABLES or width % 4 or width < 8:
        raise UserError(
            f"{name} is missing. Expected a learned position embedding from {origin}: rotary and "
            "other positions are not supported."
        )
    reader.report.missing[name] = f"the sine-cosine table of {origin}"
    return SINCOS_TABLES[origin](grid, width)[1 - first :]


def registers_name(reader: ArrayReader) -> str | None:
    """Return the name of the registers: timm's or that of DINOv2."""
    return next((name for name in ("reg_token", "register_tokens") if name in reader), None)


def read_number(metadata: Mapping[str, str], name: str) -> int | None:
    """Return a positive number of the metadata, or None. Raises UserError for another value."""
    if name not in metadata:
        return None
    if not metadata[name].isdecimal() or int(metadata[name]) < 1:
        raise UserError(f"the metadata has {name}={metadata[name]!r}. Expected 1 or more.")
    return int(metadata[name])
