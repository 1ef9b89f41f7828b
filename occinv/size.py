"""Sizes of images and patches: one number of pixels for a square, or the pair (height, width)."""

from __future__ import annotations

Size = int | tuple[int, int]
Grid = tuple[int, int]  # rows and columns of patches


def sides(size: Size) -> tuple[int, int]:
    """Return the height and width of a size."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def shortest(size: Size) -> Size:
    """Return a size as one number if it is a square, so that equal sizes compare equal."""
    height, width = sides(size)
    return height if height == width else (height, width)


def grid_of(image_size: Size, patch_size: Size) -> Grid:
    """Return the rows and columns of patches in an image."""
    (height, width), (rows, columns) = sides(image_size), sides(patch_size)
    return height // rows, width // columns


def divides(part: Size, whole: Size) -> bool:
    """Return whether a size consists of whole parts along both sides."""
    return all(b % a == 0 for a, b in zip(sides(part), sides(whole), strict=True))


def size_text(size: Size) -> str:
    """Return a size as `16²` or `16 × 24`."""
    height, width = sides(size)
    return f"{height}²" if height == width else f"{height} × {width}"


def stored_text(size: Size) -> str:
    """Return a size as `16` or `16x24`, the form in the metadata of exported files."""
    return "x".join(map(str, dict.fromkeys(sides(size))))
