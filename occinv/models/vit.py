"""The vision transformer as a pure function of its parameters and of what is visible."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv import schema
from occinv.models.blocks import XAVIER, Blocks, Gelu, Layout, RelativePosition, layer_norm
from occinv.models.patches import patchify
from occinv.models.position import interpolate, relative_offsets, sincos
from occinv.transforms.masking import visible_ids
from occinv.transforms.view import denormalize

SIZES = {  # width, depth, heads
    "micro": (64, 4, 4),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
PixelRange = Literal["imagenet", "half"]
TOKEN_INIT = nn.initializers.normal(0.02)


class Features(NamedTuple):
    """What the encoder knows of a view."""

    tokens: jax.Array  # [B, 1 + n, D]: the class token, then the n tokens that were encoded
    blocks: jax.Array  # [depth, B, 1 + n, D]: the residual stream after each block


class ViT(nn.Module):
    """ViT with a class token. Patches that are not visible are dropped, or replaced by a token.

    Attributes:
      image_size, patch_size: pixels a side.
      width, depth, heads: D, the number of blocks, attention heads.
      drop_path: rate at the last block.
      train_position: whether the position embedding learns (fine-tuning) or stays sine-cosine.
      relative_position: in place of a position embedding a learned bias of attention, one table
        `shared` by all blocks (BEiT's pretraining) or one for each `block` (its fine-tuning).
      layer_scale: where the factors on the branches of every block start; None: there are none.
      mask_token: whether removed patches enter as a learnable token (C-MAE, BEiT) instead of not
        at all (MAE).
      final_norm: whether tokens pass the last layer norm. A classifier of the mean patch token
        has a norm of its own after the mean instead (`models_vit.py` of the official MAE).
      gelu: of the MLPs: exact as in PyTorch, or by `tanh` as in big_vision.
      pixel_range: what the patch embedding was trained on: `imagenet`'s mean and deviation, or
        `half`, [-1, 1] from 0.5 and 0.5 (big_vision, some of timm). Pixels come in as the former.
      dtype: of the computation; parameters are float32.
      layout: how the blocks are computed, without effect on what they compute.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    drop_path: float = 0.0
    train_position: bool = False
    relative_position: schema.RelativePosition | None = None
    layer_scale: float | None = None
    mask_token: bool = False
    final_norm: bool = True
    dtype: Any = jnp.float32
    layout: Layout = Layout()
    gelu: Gelu = "erf"
    pixel_range: PixelRange = "imagenet"

    @property
    def num_patches(self) -> int:
        """N of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2

    @nn.compact
    def __call__(
        self,
        pixels: jax.Array,
        visible: jax.Array | None = None,
        kept: int | None = None,
        keys: jax.Array | None = None,
    ) -> Features:
        """Features of normalized `pixels` float32 [B, H, W, 3].

        Images may have another size than `image_size` (the local crops of DINO): the position
        embedding is resized for them as DINO does, and N is theirs. A relative position is not, so
        they may only be smaller then; UserError otherwise.

        Args:
          visible: bool [B, N] with `kept` True in each row; None: the whole image.
          kept: static number of visible patches an image.
          keys: key array [B] for drop path; None: evaluation.

        Returns:
          tokens [B, 1 + n, D] in float32, where n is `kept` if removed patches are dropped (tokens
          are then the visible patches in raster order) and N if they are replaced.
        """
        width, side = self.width, pixels.shape[1] // self.patch_size
        count = side**2
        if self.pixel_range == "half":
            pixels = 2 * denormalize(pixels) - 1
        patches = patchify(pixels.astype(self.dtype), self.patch_size)
        x = nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name="patch_embed")(patches)
        own = self.image_size // self.patch_size
        position = None
        if self.relative_position is None:
            position = self.param("position", lambda _: jnp.asarray(sincos(own, width)))
            # 0.1: DINO's guard against a rounded-down size, which its sampling points feel.
            position = interpolate(position, side, (side + 0.1) / own)
            if not self.train_position:
                position = jax.lax.stop_gradient(position)
            position = position.astype(self.dtype)

        whole_image = visible is None or kept == count
        if self.mask_token:
            token = self.param("mask_token", TOKEN_INIT, (width,)).astype(self.dtype)
            if not whole_image:
                x = jnp.where(visible[..., None], x, token)  # type: ignore[index]
        if position is not None:
            x = x + position[1:]
        ids = None if whole_image or self.mask_token else visible_ids(visible, kept)  # type: ignore[arg-type]
        if ids is not None:
            x = jnp.take_along_axis(x, ids[..., None], axis=1)

        first = self.param("class_token", TOKEN_INIT, (width,)).astype(self.dtype)
        if position is not None:
            first = first + position[0]
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, width)), x], axis=1)
        x, blocks = Blocks(
            self.depth,
            self.heads,
            self.drop_path,
            self.dtype,
            self.gelu,
            self.layer_scale,
            self.layout,
            name="blocks",
        )(x, keys, self._relative(side, ids))
        if self.final_norm:
            x = layer_norm("norm", self.dtype)(x)
        return Features(x.astype(jnp.float32), blocks)

    def _relative(self, side: int, ids: jax.Array | None) -> RelativePosition | None:
        """Of `side`² patches, of which those at `ids` [B, n] are encoded, or all."""
        own = self.image_size // self.patch_size
        if self.relative_position is None:
            return None
        if side > own:
            raise schema.UserError(
                f"encoder.relative_position={self.relative_position!r} with images of {side}² "
                f"patches, expected at most the {own}² that it was made for"
            )
        tables = self.depth if self.relative_position == "block" else 1
        shape = (tables, (2 * own - 1) ** 2 + 3, self.heads)
        table = self.param("relative_position", nn.initializers.zeros, shape)
        offsets = jnp.asarray(relative_offsets(side, own))
        if ids is None:
            offsets = offsets[None]
        else:
            tokens = jnp.pad(1 + ids, ((0, 0), (1, 0)))  # the class token is 0
            offsets = offsets[tokens[:, :, None], tokens[:, None, :]]
        return RelativePosition(jnp.broadcast_to(table, (self.depth, *shape[1:])), offsets)


def make_vit(
    encoder: schema.Encoder,
    image_size: int,
    dtype: Any = jnp.float32,
    layout: Layout | None = None,
) -> ViT:
    """The ViT that a config's `encoder` section describes. Raises UserError if it cannot be."""
    width, depth, heads = SIZES[encoder.name]
    width, depth = encoder.width or width, encoder.depth or depth
    heads = encoder.heads or heads
    if width % heads or width % 4:
        raise schema.UserError(
            f"encoder.width={width}, expected a multiple of 4 and of encoder.heads={heads}"
        )
    return ViT(
        image_size=image_size,
        patch_size=encoder.patch_size,
        width=width,
        depth=depth,
        heads=heads,
        drop_path=encoder.drop_path,
        train_position=encoder.train_position,
        relative_position=encoder.relative_position,
        layer_scale=encoder.layer_scale,
        gelu=encoder.gelu,
        pixel_range=encoder.pixel_range,
        dtype=dtype,
        layout=layout or Layout(),
    )
