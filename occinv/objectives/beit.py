"""BEiT: patches are removed in blocks, and the ids that a tokenizer gives them are predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv.data.batch import Batch
from occinv.losses.losses import cross_entropy
from occinv.models.tokenizers.base import Images, Read, Tokenizer, make_tokenizer
from occinv.models.vit import TOKEN_INIT, Features
from occinv.objectives.base import Axes, Params, State
from occinv.objectives.rectangle_masking import RectangleMasking
from occinv.transforms.view import View, denormalize


@dataclasses.dataclass(frozen=True, kw_only=True)
class BEiT(RectangleMasking):
    """-log p(ids(x) | f(x ⊙ M)) of the removed patches, which enter f as a learnable token.

    Attributes:
      tokenizer: `name` (kmeans, vq or dalle) and the fields of that class in occinv/tokenizer.
    """

    tokenizer: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "kmeans"})

    framework: ClassVar[str] = "reconstructive"
    paper: ClassVar[str] = "Bao et al. 2022, arXiv:2106.08254"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.codebook  # noqa: B018 (raises if it cannot be)

    @property
    def axes(self) -> Axes:
        return Axes(*self.occlusion, f"{self.tokenizer['name']} ids", "cross-entropy")

    @property
    def codebook(self) -> Tokenizer:
        """The tokenizer; its parameters are part of the state."""
        return make_tokenizer(self.tokenizer, self.encoder.image_size, self.encoder.patch_size)

    @property
    def head(self) -> nn.Dense:
        """From a token to the logits of its id."""
        return nn.Dense(self.codebook.num_ids, kernel_init=TOKEN_INIT, dtype=self.setting.dtype)

    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        encoder_key, head_key = jax.random.split(key)
        token = jnp.zeros((1, 1, self.encoder.width))
        return {
            "encoder": self.init_encoder(encoder_key, encoder),
            "head": self.head.init(head_key, token)["params"],
        }, {"tokenizer": self.codebook.init()}

    def furnish(self, read: Read, images: Images) -> Callable[[State], State]:
        """The tokenizer, from its own run or fitted to the images."""
        obtain = self.codebook.obtain(read, images)
        return lambda state: {**state, "tokenizer": obtain()}

    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """The ids, int32 [B, N]."""
        del params, batch, keys
        return self.codebook.ids(state["tokenizer"], denormalize(view.pixels))

    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross-entropy over the removed patches, and how many of their ids were the likeliest."""
        del state, view2
        removed = self.removed(view1)
        tokens = jnp.take_along_axis(z1.tokens[:, 1:], removed[..., None], axis=1)
        logits: Any = self.head.apply({"params": params["head"]}, tokens)
        return token_loss(logits.astype(jnp.float32), jnp.take_along_axis(z2, removed, axis=1))


def token_loss(logits: jax.Array, ids: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of logits [B, R, num_ids] and ids [B, R]: mean cross-entropy [B], and `accuracy` [B]."""
    right = (logits.argmax(-1) == ids).astype(jnp.float32)
    return cross_entropy(logits, ids, smoothing=0.0).mean(-1), {"accuracy": right.mean(-1)}
