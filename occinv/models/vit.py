"""The vision transformer as a pure function of its parameters and of the visible patches."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from occinv import schema
from occinv.models.attention import XAVIER
from occinv.models.blocks import Blocks, Gelu, Layout, RelativePosition, layer_norm
from occinv.models.patches import patchify
from occinv.models.position import interpolate, relative_offsets, sincos
from occinv.size import Grid, Size, grid_of, sides, size_text
from occinv.transforms.masking import visible_ids
from occinv.transforms.view import normalize

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
# `trunc_normal_` of BEiT, CAE and data2vec cuts at one deviation: the real deviation is 0.0108.
BEIT_INIT = nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)


class Features(NamedTuple):
    """The encoder's features of a view.

    Without a class token, the mean of the n tokens takes its place.

    Attributes:
      tokens: float32 [B, 1 + n, D], the class token, then the n encoded tokens.
      blocks: [depth, B, 1 + n, D], the residual stream after each block.
    """

    tokens: jax.Array
    blocks: jax.Array


class ViT(nn.Module):
    """ViT with a class token. Patches that are not visible are dropped, or replaced by a token.

    Attributes:
      image_size, patch_size: Pixels a side, or height and width.
      channels: The channels of an image.
      width, depth, heads: D, the number of blocks, the number of attention heads.
      drop_path: The rate at the last block.
      train_patch: Whether the patch projection is trained, or gets no gradient (MoCo v3).
      train_position: Whether the position embedding is trained (fine-tuning) or stays sine-cosine.
      relative_position: A learned attention bias instead of a position embedding: one table
        `shared` by all blocks (BEiT's pretraining) or one for each `block` (its fine-tuning).
      layer_scale: The initial value of LayerScale; None: no LayerScale.
      mask_token: Whether removed patches are replaced by a learned token (C-MAE, BEiT) instead of
        dropped (MAE).
      mask_token_init: The initializer of this token.
      final_norm: Whether the final layer norm is applied. A classifier of the mean patch token has
        its own norm after the mean instead (`models_vit.py` of the official MAE).
      gelu: The MLPs' GELU: exact as in PyTorch, or by `tanh` as in big_vision.
      class_token: Whether the ViT has a class token.
      registers: The number of learned tokens after the class token that are not part of the
        features (Darcet et al., arXiv:2309.16588). They have no position embedding.
      pixel_range: How pixels are normalized: by `imagenet`'s mean and standard deviation, for RGB
        alone, or to [-1, 1] (`half`: big_vision, some of timm).
      dtype: The dtype of the computation; parameters are float32.
      layout: How the blocks are executed.
    """

    image_size: Size
    patch_size: Size
    width: int
    depth: int
    heads: int
    drop_path: float = 0.0
    train_patch: bool = True
    train_position: bool = False
    relative_position: schema.RelativePosition | None = None
    layer_scale: float | None = None
    mask_token: bool = False
    mask_token_init: nn.initializers.Initializer = TOKEN_INIT
    final_norm: bool = True
    dtype: Any = jnp.float32
    layout: Layout = Layout()
    gelu: Gelu = "erf"
    pixel_range: PixelRange = "imagenet"
    class_token: bool = True
    registers: int = 0
    channels: int = 3

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches in an image of `image_size`."""
        return grid_of(self.image_size, self.patch_size)

    @property
    def num_patches(self) -> int:
        """N of an image of `image_size`."""
        return math.prod(self.grid)

    @property
    def patch_values(self) -> int:
        """P, the number of values of a patch."""
        return math.prod(sides(self.patch_size)) * self.channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W and C of an image of `image_size`."""
        return (*sides(self.image_size), self.channels)

    @nn.compact
    def __call__(
        self,
        pixels: jax.Array,
        visible: jax.Array | None = None,
        kept: int | None = None,
        rng: jax.Array | None = None,
    ) -> Features:
        """Encode `pixels` float32 [B, H, W, C] in [0, 1].

        Images may have another size than `image_size` (the local crops of DINO). The position
        embedding is then resized as in DINO, and N counts their patches. A relative position
        cannot be resized to larger images.

        Args:
          pixels: Images.
          visible: bool [B, N] with `kept` True in each row; None: the whole image.
          kept: The static number of visible patches in an image.
          rng: key array [B] for drop path; None: no drop path.

        Returns:
          Features of the class token and n patches: the visible ones in raster order if removed
          patches are dropped, all N if they are replaced.

        Raises:
          UserError: The image is larger than the relative position allows.
        """
        width, own = self.width, self.grid
        grid = grid_of((pixels.shape[1], pixels.shape[2]), self.patch_size)
        pixels = normalize(pixels) if self.pixel_range == "imagenet" else 2 * pixels - 1
        patches = patchify(pixels.astype(self.dtype), self.patch_size)
        x = nn.Dense(width, kernel_init=XAVIER, dtype=self.dtype, name="patch_embed")(patches)
        if not self.train_patch:
            x = jax.lax.stop_gradient(x)
        position = None
        if self.relative_position is None:
            position = self.param("position", lambda _: jnp.asarray(sincos(own, width)))
            # DINO adds 0.1 so that the size is not rounded down; this shifts the sampling points.
            position = interpolate(position, own, grid, extra=0.1)
            if not self.train_position:
                position = jax.lax.stop_gradient(position)
            position = position.astype(self.dtype)

        is_whole = visible is None or kept == math.prod(grid)
        if self.mask_token:
            token = self.param("mask_token", self.mask_token_init, (width,)).astype(self.dtype)
            if not is_whole:
                x = jnp.where(visible[..., None], x, token)  # type: ignore[index]
        if position is not None:
            x = x + position[1:]
        ids = None if is_whole or self.mask_token else visible_ids(visible, kept)  # type: ignore[arg-type]
        if ids is not None:
            x = jnp.take_along_axis(x, ids[..., None], axis=1)

        for first in reversed(self._first_tokens(position)):
            spread = jnp.broadcast_to(first, (x.shape[0], *first.shape))
            x = jnp.concatenate([spread, x], axis=1)
        x, blocks = Blocks(
            self.depth,
            self.heads,
            self.drop_path,
            self.dtype,
            self.gelu,
            self.layer_scale,
            self.layout,
            name="blocks",
        )(x, rng, self._relative(grid, ids))
        if self.final_norm:
            x = layer_norm("norm", self.dtype)(x)
        return Features(*map(self._class_and_patches, (x.astype(jnp.float32), blocks)))

    def _first_tokens(self, position: jax.Array | None) -> list[jax.Array]:
        """Return the tokens before the patches: the class token [1, D] and registers [R, D]."""
        tokens = []
        if self.class_token:
            token = self.param("class_token", TOKEN_INIT, (self.width,)).astype(self.dtype)
            tokens.append((token if position is None else token + position[0])[None])
        if self.registers:
            shape = (self.registers, self.width)
            tokens.append(self.param("registers", TOKEN_INIT, shape).astype(self.dtype))
        return tokens

    def _class_and_patches(self, x: jax.Array) -> jax.Array:
        """Remove the registers from [..., tokens, D]; add the mean token if no class token."""
        if self.class_token and not self.registers:
            return x
        patches = x[..., self.class_token + self.registers :, :]
        first = x[..., :1, :] if self.class_token else patches.mean(-2, keepdims=True)
        return jnp.concatenate([first, patches], axis=-2)

    def _relative(self, grid: Grid, ids: jax.Array | None) -> RelativePosition | None:
        """Return the bias of a grid's patches: of the visible ones at `ids` [B, n], or of all."""
        own = self.grid
        if self.relative_position is None:
            return None
        if grid[0] > own[0] or grid[1] > own[1]:
            raise schema.UserError(
                f"encoder.relative_position={self.relative_position!r} with images of "
                f"{size_text(grid)} patches, expected at most {size_text(own)}; use smaller "
                "images, or no relative position"
            )
        tables = self.depth if self.relative_position == "block" else 1
        shape = (tables, math.prod(2 * side - 1 for side in own) + 3, self.heads)
        table = self.param("relative_position", nn.initializers.zeros, shape)
        offsets = jnp.asarray(relative_offsets(grid, own))
        if ids is None:
            offsets = offsets[None]
        else:
            tokens = jnp.pad(1 + ids, ((0, 0), (1, 0)))  # the class token is 0
            offsets = offsets[tokens[:, :, None], tokens[:, None, :]]
        return RelativePosition(jnp.broadcast_to(table, (self.depth, *shape[1:])), offsets)


def make_vit(
    encoder: schema.Encoder,
    image_size: Size,
    dtype: Any = jnp.float32,
    layout: Layout | None = None,
    channels: int = 3,
) -> ViT:
    """Build the ViT of a config's `encoder` section. Raises UserError for an impossible size."""
    width, depth, heads = SIZES[encoder.name]
    width, depth = encoder.width or width, encoder.depth or depth
    heads = encoder.heads or heads
    if width % heads or width % 4:
        raise schema.UserError(
            f"encoder.width={width}, expected a multiple of 4 and of encoder.heads={heads}"
        )
    if encoder.relative_position is not None and (encoder.registers or not encoder.class_token):
        raise schema.UserError(
            f"encoder.relative_position={encoder.relative_position!r} with registers or without a "
            "class token, expected a class token alone; set relative_position=None"
        )
    if channels != 3 and encoder.pixel_range == "imagenet":
        raise schema.UserError(
            f"data.channels={channels} with encoder.pixel_range='imagenet', which is the range of "
            "RGB; set encoder.pixel_range=half"
        )
    return ViT(
        image_size=image_size,
        patch_size=encoder.patch_size,
        width=width,
        depth=depth,
        heads=heads,
        drop_path=encoder.drop_path,
        train_patch=encoder.train_patch,
        train_position=encoder.train_position,
        relative_position=encoder.relative_position,
        layer_scale=encoder.layer_scale,
        gelu=encoder.gelu,
        pixel_range=encoder.pixel_range,
        class_token=encoder.class_token,
        registers=encoder.registers,
        dtype=dtype,
        layout=layout or Layout(),
        channels=channels,
    )


def vit_of(
    experiment: schema.Experiment, dtype: Any = jnp.float32, layout: Layout | None = None
) -> ViT:
    """Build the ViT of an experiment, for its images. Raises UserError for an impossible size."""
    data = experiment.data
    return make_vit(experiment.encoder, data.image_size, dtype, layout, data.channels)


@struct.dataclass
class Pretrained:
    """Networks to start from.

    Attributes:
      params: Their parameters by name: the encoder alone, or all networks of an objective.
      grid: Rows and columns of patches that their position embeddings belong to.
    """

    params: dict[str, Any]
    grid: Grid = struct.field(pytree_node=False)


def start_from(
    encoder: ViT, fresh: dict[str, Any], pretrained: dict[str, Any], grid: Grid
) -> dict[str, Any]:
    """Replace `fresh` parameters of `encoder` by the `pretrained` ones of the same name.

    A position embedding of another grid is resized as in the official MAE
    (`interpolate_pos_embed`), and a relative position shared by all blocks is copied to each block,
    as in BEiT's fine-tuning.

    Args:
      encoder: The encoder that starts.
      fresh: Its initial parameters.
      pretrained: The parameters of another encoder.
      grid: Rows and columns of patches that the positions of `pretrained` belong to.

    Raises:
      UserError: Any other parameter has another shape, or only one has a class token or registers.
    """
    for name in ("class_token", "registers"):
        if (name in pretrained) != (name in fresh):
            field = {"registers": len(pretrained.get(name, ())), "class_token": name in pretrained}
            raise schema.UserError(
                f"init_from: that encoder has encoder.{name}={field[name]}; set the same here"
            )
    start = {name: value for name, value in pretrained.items() if name in fresh}
    if "position" in start:
        start["position"] = interpolate(jnp.asarray(start["position"]), grid, encoder.grid)
    if "relative_position" in start and grid != encoder.grid:
        raise schema.UserError(
            f"init_from: relative positions of {size_text(grid)} patches cannot be resized to "
            f"{size_text(encoder.grid)}; use the image size and patch size of that run"
        )
    if len(start.get("relative_position", ())) == 1:
        table = start["relative_position"]
        start["relative_position"] = jnp.repeat(table, len(fresh["relative_position"]), axis=0)
    for name, value in start.items():
        theirs, ours = jax.tree.map(jnp.shape, value), jax.tree.map(jnp.shape, fresh[name])
        if theirs != ours:
            raise schema.UserError(
                f"init_from: {name} of that encoder has shapes {theirs}, expected {ours}; set "
                "encoder.* to the values of that run"
            )
    return {**fresh, **start}
