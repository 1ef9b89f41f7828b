"""The encoder of DALL·E's discrete VAE, whose ids BEiT and CAE predict."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.models.tokenizers.base import Params, PretrainedTokenizer
from occinv.schema import Count, UserError, Width

GROUPS, BLOCKS = 4, 2  # groups of layers, and residual units in each; pooling between groups
SHRINKS = 2 ** (GROUPS - 1)  # pixels a side for an id


class ResidualUnit(nn.Module):
    """x + four convolutions with relu, a quarter as wide inside, scaled down by depth."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, C] to [B, H, W, width]."""
        inner, kept = self.width // 4, x
        if x.shape[-1] != self.width:
            kept = nn.Conv(self.width, (1, 1), name="id_path")(x)
        for number, (width, side) in enumerate([(inner, 3)] * 3 + [(self.width, 1)], 1):
            x = nn.Conv(width, (side, side), name=f"conv_{number}")(nn.relu(x))
        return kept + x / (GROUPS * BLOCKS) ** 2


class DalleEncoder(nn.Module):
    """Logits of the ids (`Encoder` of dall_e/encoder.py), with its names of layers."""

    hidden: int
    num_ids: int

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Map [B, H, W, 3], the output of `map_pixels`, to [B, H / 8, W / 8, num_ids]."""
        x = nn.Conv(self.hidden, (7, 7), name="input")(pixels)
        for group in range(1, GROUPS + 1):
            if group > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for block in range(1, BLOCKS + 1):
                width = 2 ** (group - 1) * self.hidden
                x = ResidualUnit(width, name=f"group_{group}_block_{block}")(x)
        return nn.Conv(self.num_ids, (1, 1), name="output")(nn.relu(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dalle(PretrainedTokenizer):
    """The likeliest of 8192 ids, of the RGB image resized to 8 pixels a side for each patch.

    The defaults are the sizes of the published file; `occinv weights import --from dalle` turns it
    into a workdir.

    Attributes:
      hidden: The channels of the first group.
    """

    num_ids: Count = 8192
    hidden: Width = 256
    components: ClassVar[tuple[str, ...]] = ("dalle",)

    def __post_init__(self) -> None:
        if self.channels != 3:
            raise UserError(
                f"data.channels={self.channels} with objective.tokenizer.name='dalle', which reads "
                "RGB images; use another tokenizer, such as kmeans"
            )

    @property
    def module(self) -> DalleEncoder:
        """The convolutional encoder."""
        return DalleEncoder(self.hidden, self.num_ids)

    def shapes(self) -> Any:
        pixels = jnp.zeros((1, SHRINKS, SHRINKS, 3))
        return {"dalle": jax.eval_shape(self.module.init, jax.random.key(0), pixels)["params"]}

    def logits(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Return float32 [B, N, num_ids] of `pixels` float32 [B, H, W, 3] in [0, 1]."""
        rows, columns = self.grid
        shape = (len(pixels), SHRINKS * rows, SHRINKS * columns, 3)
        small = jax.image.resize(pixels, shape, "lanczos3")
        # Pillow clips overshoot. 0.1 + 0.8 x: `map_pixels` of dall_e/utils.py.
        mapped = 0.1 + 0.8 * jnp.clip(small, 0, 1)
        logits: Any = self.module.apply({"params": params["dalle"]}, mapped)
        return logits.reshape(len(pixels), rows * columns, self.num_ids)

    def ids(self, params: Params, pixels: jax.Array) -> jax.Array:
        return self.logits(params, pixels).argmax(-1).astype(jnp.int32)
