"""The objective of a workdir that holds somebody else's encoder, and nothing it was trained by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

import jax

from occinv.data.batch import Batch
from occinv.models.vit import Features, ViT
from occinv.objectives.base import Axes, Objective, Params, State
from occinv.schema import UserError
from occinv.transforms.view import View, normalize, whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderOnly(Objective):
    """f alone: to be measured, or to start another run from. It cannot be trained by itself.

    Attributes:
      mask_token: whether the encoder has a token for removed patches.
      final_norm: whether the encoder ends in a layer norm.
    """

    mask_token: bool = False
    final_norm: bool = True

    @property
    def axes(self) -> Axes:
        return Axes("unknown", "unknown", "unknown", "unknown")

    @property
    def encoder(self) -> ViT:
        """f, as the file had it."""
        return self.setting.encoder.clone(mask_token=self.mask_token, final_norm=self.final_norm)

    def init(self, key: jax.Array, encoder: Params | None = None) -> NoReturn:
        raise _no_loss()

    def transform(self, pixels: jax.Array, keys: jax.Array) -> tuple[View, ...]:
        """The image as it is, twice."""
        view = whole(normalize(pixels), self.encoder.num_patches)
        return view, view

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> NoReturn:
        raise _no_loss()

    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: View, view2: View
    ) -> NoReturn:
        raise _no_loss()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerOnly(EncoderOnly):
    """A tokenizer alone, for `objective.tokenizer.start` of another run.

    Attributes:
      tokenizer: the section `objective.tokenizer` that it is.
    """

    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def encoder(self) -> NoReturn:
        raise UserError(
            "this workdir holds an imported tokenizer and no encoder: name it in "
            "--config.objective.tokenizer.start=<this workdir>"
        )


def _no_loss() -> UserError:
    return UserError(
        "this workdir holds an imported encoder only, without a loss: train another objective with "
        "--config.init_from=<this workdir>, or measure it by `occinv evaluate cka`"
    )


TOKENIZER = f"{TokenizerOnly.__module__}:{TokenizerOnly.__qualname__}"
NAME = f"{EncoderOnly.__module__}:{EncoderOnly.__qualname__}"  # in a config
