"""What a tokenizer is: image -> ids."""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from occinv import schema
from occinv.models.tokenizers import TOKENIZERS
from occinv.schema import UserError, nearest

Params = dict[str, Any]
Read = Callable[[str], Params]  # the parameters of another run, by its workdir
Images = Callable[[], Iterator[np.ndarray]]  # the training images, uint8 [B, H, W, 3] at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(ABC):
    """A codebook of `num_ids` words, one of which each patch of an image is.

    Its parameters never learn from whoever predicts the ids, so they are part of that objective's
    state, and saved with it: a run can go on when the tokenizer's own folder is gone, or holds
    another one. They are few beside a model and its optimizer (DALL·E's: a fifth of ViT-B's).

    Attributes:
      image_size, patch_size: pixels a side, of the images that get ids.
    """

    image_size: int
    patch_size: int
    num_ids: int

    @property
    def side(self) -> int:
        """Patches a side: an image has side² ids."""
        return self.image_size // self.patch_size

    @abstractmethod
    def shapes(self) -> Any:
        """The parameters' shapes and dtypes, without computing any."""

    def init(self) -> Params:
        """Parameters to be replaced by what `obtain` finds: zeros."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.shapes())

    @abstractmethod
    def obtain(self, read: Read, images: Images) -> Callable[[], Params]:
        """A function that returns the parameters, as NumPy arrays, computing what takes long.

        Raises UserError at once where another run does not have them.
        """

    @abstractmethod
    def ids(self, params: Params, pixels: jax.Array) -> jax.Array:
        """int32 [B, side²], in raster order, of `pixels` float32 [B, H, W, 3] in [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer(Tokenizer):
    """A tokenizer whose parameters are those of another run, or of an imported file.

    Attributes:
      start: the workdir; only a new run looks at it.
    """

    start: str | None = None
    components: ClassVar[tuple[str, ...]]  # of that run's parameters

    def obtain(self, read: Read, images: Images) -> Callable[[], Params]:
        del images
        if self.start is None:
            raise UserError(
                "objective.tokenizer.start is missing: give the workdir of a tokenizer, or "
                "--config.objective.tokenizer.name=kmeans"
            )
        found = read(self.start)
        params = {name: found[name] for name in self.components if name in found}
        theirs, ours = (jax.tree.map(lambda x: x.shape, tree) for tree in (params, self.shapes()))
        if theirs != ours:
            raise UserError(
                f"objective.tokenizer.start={self.start!r} holds {sorted(found)}, of other shapes "
                f"than those of {sorted(ours)} here; give objective.tokenizer.* the values of that "
                "run"
            )
        return lambda: params


def make_tokenizer(section: Mapping[str, Any], image_size: int, patch_size: int) -> Tokenizer:
    """The tokenizer that a config's `objective.tokenizer` describes. Raises UserError."""
    fields = dict(section)
    name = str(fields.pop("name", ""))
    if name not in TOKENIZERS:
        raise UserError(f"unknown objective.tokenizer.name={name!r}{nearest(name, TOKENIZERS)}")
    module, _, attribute = TOKENIZERS[name].partition(":")
    return schema.from_mapping(
        getattr(importlib.import_module(module), attribute),
        fields,
        "objective.tokenizer",
        image_size=image_size,
        patch_size=patch_size,
    )
