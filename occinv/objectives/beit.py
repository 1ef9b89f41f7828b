"""BEiT: rectangles of patches are removed, and their ids in a visual codebook are predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.losses.classification import cross_entropy
from occinv.models.tokenizers.base import Tokenizer, make_tokenizer
from occinv.models.vit import BEIT_INIT
from occinv.objectives.base import Axes, Context, Networks, Terms
from occinv.objectives.rectangle_masking import RectangleMasking, removed_ids, removed_tokens
from occinv.rng import fold
from occinv.transforms.view import View


class BEiTNetworks(Networks):
    """f, and a linear layer from tokens to the logits of their ids."""

    head: nn.Dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class BEiT(RectangleMasking):
    """-log p(ids(x) | f(x ⊙ M)) of the removed patches, which a learned token replaces.

    Attributes:
      tokenizer: `name` (kmeans, vq or dalle) and the fields of that class in models/tokenizers.
    """

    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "kmeans"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.codebook  # noqa: B018 (raises for an impossible tokenizer)

    @property
    def axes(self) -> Axes:
        target, paper = f"{self.tokenizer['name']} ids", "Bao et al. 2022, arXiv:2106.08254"
        return Axes(*self.describe(), target, "cross-entropy", "reconstructive", paper, "mean")

    @property
    def codebook(self) -> Tokenizer:
        """The tokenizer."""
        encoder = self.setting.encoder
        sizes = encoder.image_size, encoder.patch_size, encoder.channels
        return make_tokenizer(self.tokenizer, *sizes)

    @property
    def state(self) -> dict[str, Any]:
        return {"tokenizer": self.codebook}

    @property
    def networks(self) -> Networks:
        encoder = self.setting.encoder.clone(mask_token=True, mask_token_init=BEIT_INIT)
        ids, dtype = self.codebook.num_ids, self.setting.dtype
        return BEiTNetworks(encoder, nn.Dense(ids, kernel_init=BEIT_INIT, dtype=dtype))

    def features(self, net: Any, views: tuple[View, ...], ctx: Context) -> Any:
        """z1: the patch tokens of f(T1 x). Ids are not floats; the loss computes them."""
        return net.encode(views[0], fold(ctx.rng, 0)).tokens[:, 1:]

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """Cross-entropy over the removed patches, and the accuracy of their likeliest ids."""
        first, second = views
        ids = self.codebook.ids(ctx.state["tokenizer"], second.pixels)
        logits = net.head(removed_tokens(z, first)).astype(jnp.float32)
        return token_loss(logits, jnp.take_along_axis(ids, removed_ids(first), axis=1))


def token_loss(logits: jax.Array, ids: jax.Array) -> Terms:
    """Return the mean cross-entropy [B] of logits [B, R, num_ids] for ids [B, R], and accuracy."""
    right = (logits.argmax(-1) == ids).astype(jnp.float32)
    loss = cross_entropy(logits, ids, smoothing=0.0).mean(-1)
    return Terms(loss, {"accuracy": right.mean(-1)})
