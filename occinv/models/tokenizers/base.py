"""The interface of tokenizers: image -> ids."""

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
from occinv.size import Grid, Size, grid_of

Params = dict[str, Any]
Read = Callable[[str], tuple[schema.Experiment, Params]]  # from the workdir of another run
Images = Callable[[], Iterator[np.ndarray]]  # the training images, in batches uint8 [B, H, W, C]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenizer(ABC):
    """A codebook of `num_ids` codes that gives each patch of an image an id.

    The objective that predicts the ids never trains the tokenizer, so the tokenizer's parameters
    are part of the objective's state and saved with it: a run can resume when the tokenizer's own
    folder is gone or holds another one. They are small beside a model and its optimizer (DALL·E's:
    a fifth of ViT-B's).

    Attributes:
      image_size, patch_size: Pixels a side of the images that get ids, and of their patches, or
        height and width.
      channels: The channels of these images.
      num_ids: The number of ids.
    """

    image_size: Size
    patch_size: Size
    channels: int = 3
    num_ids: int

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches; each has an id."""
        return grid_of(self.image_size, self.patch_size)

    @abstractmethod
    def shapes(self) -> Any:
        """Return shapes and dtypes of the parameters, without computing any."""

    def init(self) -> Params:
        """Return zeros, which `obtain` replaces before the first step."""
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.shapes())

    @abstractmethod
    def obtain(self, read: Read, images: Images) -> Callable[[], Params]:
        """Return a function that loads or fits the parameters, as NumPy arrays.

        Raises:
          UserError: Another run does not have them. It is raised by this call, at once.
        """

    @abstractmethod
    def ids(self, params: Params, pixels: jax.Array) -> jax.Array:
        """Return int32 [B, N] in raster order for `pixels` float32 [B, H, W, C] in [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedTokenizer(Tokenizer):
    """A tokenizer with the parameters of another run, or of an imported file.

    Attributes:
      start: The workdir; only a new run reads it.
      components: The names of these parameters among that run's.
    """

    start: str | None = None
    components: ClassVar[tuple[str, ...]]

    def obtain(self, read: Read, images: Images) -> Callable[[], Params]:
        if self.start is None:
            raise UserError(
                "objective.tokenizer.start is missing; give the workdir of a tokenizer, or "
                "--config.objective.tokenizer.name=kmeans"
            )
        experiment, found = read(self.start)
        params = {name: found[name] for name in self.components if name in found}
        theirs, ours = (jax.tree.map(lambda x: x.shape, tree) for tree in (params, self.shapes()))
        if theirs != ours:
            raise UserError(
                f"objective.tokenizer.start={self.start!r} holds {sorted(found)} with other shapes "
                f"than those of {sorted(ours)} here; set objective.tokenizer.* to the values of "
                "that run"
            )
        self.check_run(experiment)
        return lambda: params

    def check_run(self, experiment: schema.Experiment) -> None:
        """Raise UserError if the run differs in what the shapes of parameters do not show."""


def make_tokenizer(
    section: Mapping[str, Any], image_size: Size, patch_size: Size, channels: int = 3
) -> Tokenizer:
    """Build the tokenizer of a config's `objective.tokenizer`.

    Raises:
      UserError: An unknown name or field, or a tokenizer that cannot read these images.
    """
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
        channels=channels,
    )
