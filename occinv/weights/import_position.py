"""Reads sizes, tokens before the patches, and positions of a ViT from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from occinv.schema import UserError
from occinv.weights.grids import SINCOS_TABLES, Grid, Rows, check_square, find_rows, table_side
from occinv.weights.pytorch_names import ArrayReader, Tree

IMAGE_SIZE = 224  # of a checkpoint that does not state it
MAX_SIDE = 1024  # of a position embedding that is computed
TABLE = "relative_position_bias_table"


class Sizes(NamedTuple):
    """The sizes of a ViT.

    Attributes:
      width: D.
      patch_size: Pixels a side of a patch.
      side: Patches a side of an image.
      first: Rows of the position embedding before those of the patches.
    """

    width: int
    patch_size: int
    side: int
    first: int


def read_sizes(
    reader: ArrayReader, metadata: Mapping[str, str], grid: Grid | None, origin: str
) -> Sizes:
    """Return the sizes of a ViT, with the grid as given, in the metadata, or of its positions.

    Raises:
      UserError: Patches or grid are not square, or the grid is not known.
    """
    shape = reader.shape("patch_embed.proj.weight")
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[2]:
        raise UserError(
            f"the patch embedding has shape {list(shape)} in PyTorch's layout. Expected "
            "[width, 3, p, p]: square patches of RGB."
        )
    width, patch_size = shape[0], shape[2]
    grid = grid or _grid_of(metadata, patch_size)
    if "pos_embed" in reader:
        rows = _rows(reader, "pos_embed", _first_rows(reader, origin), grid)
        return Sizes(width, patch_size, *rows)
    tables = [name for name in reader.arrays if name.endswith(TABLE)]
    if tables:
        count = reader.shape(tables[0], 2)[0]
        return Sizes(width, patch_size, table_side(tables[0], count, grid), 0)
    if "decoder_pos_embed" in reader:
        return Sizes(width, patch_size, *_rows(reader, "decoder_pos_embed", (1,), grid))
    if grid is None:
        if IMAGE_SIZE % patch_size:
            raise UserError(
                f"the file has no position embedding, and patches of {patch_size} pixels do not "
                f"divide images of {IMAGE_SIZE}. Pass --grid HxW."
            )
        reader.report.notes.append(
            f"data.image_size: {IMAGE_SIZE} (assumed: the file has no position embedding)"
        )
        grid = (IMAGE_SIZE // patch_size,) * 2
    check_square("the ViT", grid)
    if grid[0] > MAX_SIDE:
        raise UserError(
            f"the grid has {grid[0]} patches a side and no position embedding. Expected {MAX_SIDE} "
            "or fewer: pass --grid HxW."
        )
    return Sizes(width, patch_size, grid[0], 1)


def _grid_of(metadata: Mapping[str, str], patch_size: int) -> Grid | None:
    """Return the grid of the image size in the metadata, `32` or `32x48`; None if it lacks it."""
    if "image_size" not in metadata:
        return None
    height, _, width = metadata["image_size"].partition("x")
    sides = {"height": height, "width": width or height}
    numbers = [read_number(sides, name) or 0 for name in sides]
    if any(number % patch_size for number in numbers):
        raise UserError(
            f"image_size {metadata['image_size']} is not divisible by patches of {patch_size} "
            "pixels. Expected a multiple."
        )
    return numbers[0] // patch_size, numbers[1] // patch_size


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
    position = read_position(reader, "pos_embed", width, sizes.side, first, origin)
    if first > int(has_class):  # rows of the registers, after that of the class token
        found["registers"] = found["registers"] + position[int(has_class) : first]
    row = position[:1] if first and has_class else np.zeros((1, width), np.float32)
    if has_class and not first:
        reader.report.missing["the class token's row of pos_embed"] = "zeros"
    found["position"] = np.concatenate([row, position[first:]])
    return found


def read_position(
    reader: ArrayReader, name: str, width: int, side: int, first: int, origin: str
) -> np.ndarray:
    """Return a position embedding [first + N, D]: of the file, or the fixed table of the origin."""
    if name in reader:
        rows = reader.shape(name)[-2]
        if rows != first + side**2:
            raise UserError(f"{name} has {rows} rows. Expected {first} + {side}², as pos_embed.")
        return reader.take(name, 1, rows, width)[0]
    if origin not in SINCOS_TABLES or width % 4 or width < 8:
        raise UserError(
            f"{name} is missing. Expected a learned position embedding from {origin}: rotary and "
            "other positions are not supported."
        )
    reader.report.missing[name] = f"the sine-cosine table of {origin}"
    return SINCOS_TABLES[origin](side, width)[1 - first :]


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
