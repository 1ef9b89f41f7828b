"""The objectives of imported workdirs that hold an encoder or a tokenizer, but no loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

import jax

from occinv.objectives.base import Axes, Context, Networks, Objective
from occinv.schema import UserError
from occinv.transforms.view import View, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOnly(Objective):
    """An encoder to evaluate, or to start another run from. It cannot be trained by itself.

    Attributes:
      mask_token: Whether the encoder has a token for masked patches.
      final_norm: Whether the encoder ends in a layer norm.
    """

    mask_token: bool = False
    final_norm: bool = True

    @property
    def axes(self) -> Axes:
        token = "class" if self.setting.encoder.class_token else "mean"
        return Axes("unknown", "unknown", "unknown", "unknown", token=token)  # type: ignore[arg-type]

    @property
    def networks(self) -> Networks:
        encoder = self.setting.encoder
        return Networks(encoder.clone(mask_token=self.mask_token, final_norm=self.final_norm))

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        """Return the whole image."""
        return (whole(pixels, self.setting.encoder.num_patches),)

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> NoReturn:
        raise UserError(
            "this workdir holds an imported encoder without a loss. Train another objective with "
            "--config.init_from=<this workdir>, or evaluate the encoder with `occinv evaluate cka`."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerOnly(EncoderOnly):
    """A tokenizer to start another run from, by `objective.tokenizer.start`.

    Attributes:
      tokenizer: Its section `objective.tokenizer`.
    """

    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def networks(self) -> NoReturn:
        raise UserError(
            "this workdir holds an imported tokenizer and no encoder. Give it to another run by "
            "--config.objective.tokenizer.start=<this workdir>."
        )


# The values of objective.name in a config.
ENCODER_ONLY = f"{EncoderOnly.__module__}:{EncoderOnly.__qualname__}"
TOKENIZER_ONLY = f"{TokenizerOnly.__module__}:{TokenizerOnly.__qualname__}"
