"""Eq. (1): min E_x M(z1, z2), z1 = f(T1(x)), z2 = target(T2(x)). Every objective is a row of it.

`Objective` is the interface that a method implements: networks, views, features and loss.
`forward.py` has what the library does with any objective: initialize, compute the loss, evaluate.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn

from occinv import schema
from occinv.data.crop import Crop
from occinv.models.vit import Features, ViT, vit_of
from occinv.objectives import OBJECTIVES
from occinv.objectives.ema import EMA
from occinv.rng import fold
from occinv.schema import Experiment
from occinv.transforms.view import View

Params = dict[str, Any]
State = dict[str, Any]


class Axes(NamedTuple):
    """The description of an objective in tables.

    Attributes:
      t1, t2: The transformations.
      target: The target of z2.
      measure: M.
      framework: `siamese`, `reconstructive` or `supervised`.
      paper: Authors, year and arXiv number.
      token: The token that describes a whole image: the `class` token, or the `mean` patch token if
        the loss does not train the class token. Measurements of features use it.
    """

    t1: str
    t2: str
    target: str
    measure: str
    framework: str = "siamese"
    paper: str = "–"
    token: Literal["class", "mean"] = "class"


@dataclasses.dataclass(frozen=True)
class Setting:
    """The part of an experiment that an objective needs besides its own fields.

    Attributes:
      encoder: f as configured; an objective may clone it with other options.
      num_classes: The number of classes of the data.
      total_steps: The length of the run.
      dtype: The dtype of the computation.
      batch_size, num_images: The global batch, and the images in an epoch.
      mesh: The devices that share a batch; None: one device.
      is_training: False in evaluation, where the encoder has no drop path, either.
      has_validation: Whether the run has validation images.
      ema_power: The exponent of the momentum of EMA targets, batch_size / optimizer.ema_batch.
    """

    encoder: ViT
    num_classes: int
    total_steps: int
    dtype: Any = jnp.float32
    batch_size: int = 1
    num_images: int = 1
    mesh: jax.sharding.Mesh | None = None
    is_training: bool = True
    has_validation: bool = True
    ema_power: float = 1.0


class ParamGroup(NamedTuple):
    """The training of the parameters below a path.

    Attributes:
      lr_scale: Factor on the learning rate.
      start: The first step in which they are trained; None: never.
    """

    lr_scale: float = 1.0
    start: int | None = 0


FROZEN = ParamGroup(start=None)


class Networks(nn.Module):
    """One Flax module for f and the networks of M, which an objective adds as fields."""

    encoder: ViT

    def encode(self, view: View, rng: jax.Array | None = None) -> Features:
        """Return f(view). `rng` is a key array [B] for drop path; None disables it."""
        return self.encoder(view.pixels, view.visible, view.kept, rng)


@dataclasses.dataclass(frozen=True)
class Context:
    """The inputs of `features` and `loss` besides networks and views.

    Attributes:
      rng: key array [B], one PRNG key for each image.
      step: int32 [], the number of steps taken.
      label: int32 [B].
      weight: float32 [B], 0 for padding.
      state: The objective's state.
      target: The networks with the EMA parameters `state["target"]`, without gradient.
    """

    rng: jax.Array
    step: jax.Array
    label: jax.Array
    weight: jax.Array
    state: State
    target: Any


class Terms(NamedTuple):
    """The result of a loss.

    Attributes:
      loss: float32 [B], one value per image.
      metrics: Each [B], or [B, K] in evaluation.
      state: The entries of the state that change, such as a center.
    """

    loss: jax.Array
    metrics: dict[str, jax.Array]
    state: State = {}  # noqa: RUF012 (never written to)


class Reconstruction(NamedTuple):
    """Three pictures of each image, float32 [B, H, W, C] in [0, 1].

    Attributes:
      original: The image.
      masked: The image with gray patches where they were removed.
      reconstructed: The decoder's image; visible patches are pasted.
    """

    original: jax.Array
    masked: jax.Array
    reconstructed: jax.Array


@runtime_checkable
class Reconstructs(Protocol):
    """An objective that can decode its features into an image."""

    def reconstruct(self, params: Params, pixels: jax.Array, visible: jax.Array) -> Reconstruction:
        """Reconstruct `pixels` float32 [B, H, W, C] in [0, 1] from `visible` patches [B, N]."""


@runtime_checkable
class Obtained(Protocol):
    """A part of the state that is loaded or fitted before the first step, such as a tokenizer."""

    def init(self) -> Params:
        """Return placeholders of the right shapes."""

    def obtain(self, read: Any, images: Any) -> Callable[[], Params]:
        """Return a function that loads the parameters, or fits them to the images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """One row: T1, T2, the target of z2, and M. The fields of a subclass are its config section.

    A new objective writes `networks`, `views` and `loss`, and `features` if z is not simply f of
    every view. The other members have defaults.
    """

    setting: Setting

    @property
    def axes(self) -> Axes:
        """T1, T2, target and M of this instance in words."""
        return Axes("–", "–", "–", type(self).__name__)

    @property
    def crops(self) -> tuple[Crop, ...]:
        """Random crops that the host makes of each image besides the first."""
        return ()

    @property
    def couples(self) -> Literal["nothing", "loss", "features"]:
        """Where the images of a batch interact first.

        If it is the loss, gradient accumulation computes features part by part and the loss of the
        whole batch at once (GradCache). If it is the features, a batch cannot be accumulated.
        """
        return "nothing"

    @property
    def param_groups(self) -> dict[tuple[str, ...], ParamGroup]:
        """The training of parameters below a path, such as ("encoder", "patch_embed")."""
        return {}

    @property
    def state(self) -> dict[str, EMA | Obtained | jax.Array]:
        """Everything that is not trained by gradients, by name.

        An EMA copy (at most one, named "target") moves before each forward pass, a tokenizer is
        loaded or fitted before the first step, and an array changes when the loss returns it.
        """
        return {}

    @property
    @abstractmethod
    def networks(self) -> Networks:
        """The module of f and the networks of M, without parameters."""

    @abstractmethod
    def views(self, pixels: Any, rng: jax.Array) -> tuple[View, ...]:
        """Return T1(x), T2(x), … of `pixels` float32 [B, H, W, C] in [0, 1].

        An objective with `crops` gets a tuple: the image, then each crop. `rng` is a key array [B];
        each image is transformed by its own key.
        """

    def features(self, net: Any, views: tuple[View, ...], ctx: Context) -> Any:
        """Return z1, z2, …: floats whose leading axis is the images. Default: f of every view."""
        return tuple(net.encode(view, fold(ctx.rng, i)) for i, view in enumerate(views))

    @abstractmethod
    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        """Return M(z1, z2) for each image, metrics, and changes of the state."""

    def summarize(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Return the results of an evaluation from the mean metrics over its images."""
        return metrics


def mean_terms(terms: list[Terms]) -> Terms:
    """Average losses and metrics over several pairs of views; keep the state of the first."""
    loss, metrics = jax.tree.map(
        lambda *values: sum(values) / len(values), *((t.loss, t.metrics) for t in terms)
    )
    return Terms(loss, metrics, terms[0].state)


def make_objective(section: Mapping[str, Any], setting: Setting) -> Objective:
    """Build the objective of a config's `objective` section.

    `name` is a name of `OBJECTIVES`, or `module:Class` for an objective outside the library.

    Raises:
      UserError: An unknown name or field, or a combination that cannot work.
    """
    fields = dict(section)
    name = str(fields.pop("name", ""))
    found = schema.find_class(OBJECTIVES, name, Objective, "objective.name=")
    return schema.from_mapping(found, fields, "objective", setting=setting)


def objective_of(experiment: Experiment, num_classes: int = 2, total_steps: int = 1) -> Objective:
    """Build the objective of an experiment on one device, without its data."""
    batch_size = experiment.train.batch_size
    setting = Setting(vit_of(experiment), num_classes, total_steps, batch_size=batch_size)
    return make_objective(experiment.objective, setting)


def check_contrast_group(group: int | None, setting: Setting) -> None:
    """Raise UserError unless the batch consists of groups of `group` images."""
    if group is not None and setting.batch_size % group:
        raise schema.UserError(
            f"objective.contrast_group={group}, expected a divisor of "
            f"train.batch_size={setting.batch_size}"
        )
