"""The attention of the class token to the patches."""

from __future__ import annotations

import functools
from typing import Any

import jax

from occinv.models.vit import ViT
from occinv.schema import UserError


@functools.partial(jax.jit, static_argnames="encoder")
def class_attention(encoder: ViT, params: Any, pixels: jax.Array) -> jax.Array:
    """Return softmax(q · k / √d) of the class token's query and the patches' keys, in every block.

    For the last block this is the first row of the official DINO's `get_last_selfattention`.

    Args:
      encoder: f.
      params: The parameters of f alone.
      pixels: float32 [B, H, W, C] in [0, 1], whole images.

    Returns:
      float32 [depth, B, heads, N], patches in raster order. The sum over N is less than 1; the rest
      is the class token's attention to itself and to registers.

    Raises:
      UserError: The encoder has no class token.
    """
    if not encoder.class_token:
        raise UserError("the encoder has no class token, whose attention is asked for")
    _, found = encoder.apply({"params": params}, pixels, mutable=["intermediates"])
    (weights,) = found["intermediates"]["blocks"]["scan"]["attention"]["of_class"]
    return weights[..., 1 + encoder.registers :]
