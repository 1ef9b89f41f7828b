"""Eq. (1): min E_x M(z1, z2), z1 = f(T1(x)), z2 = target(T2(x)). Every objective is a row of it."""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from occinv import schema
from occinv.data.batch import Batch
from occinv.data.crop import Crop
from occinv.models.position import interpolate
from occinv.models.tokenizers.base import Images, Read
from occinv.models.vit import Features, ViT
from occinv.objectives import OBJECTIVES
from occinv.rng import fold, split
from occinv.schema import UserError, nearest
from occinv.transforms.color import ColorJitter
from occinv.transforms.view import View, unit_range

Params = dict[str, Any]
State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an objective is told besides its own fields: the rest of the experiment."""

    encoder: ViT
    num_classes: int
    total_steps: int
    dtype: Any = jnp.float32
    batch_size: int = 1  # with num_images: what an epoch is
    num_images: int = 1
    mesh: jax.sharding.Mesh | None = None  # over which a batch lies; None: on one device


class Axes(NamedTuple):
    """The row of the table, in words."""

    t1: str
    t2: str
    target: str
    measure: str


def occlusion(mask_ratio: float, cutmix: float, color: ColorJitter | None) -> str:
    """A transformation in words, such as `75% removed, CutMix, color`."""
    parts = {
        f"{mask_ratio:.0%} removed": mask_ratio,
        "CutMix": cutmix,
        "color": color is not None,
    }
    return ", ".join(name for name, is_on in parts.items() if is_on) or "identity"


class Terms(NamedTuple):
    """What an objective says of a batch."""

    loss: jax.Array  # float32 [B], image by image
    metrics: dict[str, jax.Array]  # each [B]
    state: State


def weighted(
    terms: Terms, weight: jax.Array
) -> tuple[jax.Array, tuple[State, dict[str, jax.Array]]]:
    """The mean of `terms` by weight [B], not all 0: loss [], (state, metrics)."""
    weight = weight / weight.sum()
    metrics = {name: (weight * value).sum() for name, value in terms.metrics.items()}
    return (weight * terms.loss).sum(), (terms.state, metrics)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """One row: T1, T2, the target of z2, and M. Subclasses' fields are what a config may set.

    Parameters are a dict by component: `encoder` is f, the others belong to M. `state` holds what
    is not learned by gradients (an EMA target); both are pytrees that only the functions below make
    and return.
    """

    setting: Setting

    framework: ClassVar[str] = "siamese"
    paper: ClassVar[str] = "–"  # that it is from

    @property
    @abstractmethod
    def axes(self) -> Axes:
        """T1, T2, target and M of this very instance."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Which view meets which target: M(f(views[i]), target(views[j])) for every (i, j)."""
        return ((0, 1),)

    @property
    def crops(self) -> tuple[Crop, ...]:
        """Random crops that the host makes of each image besides the first."""
        return ()

    @property
    def learns_late(self) -> dict[tuple[str, ...], int | None]:
        """The step from which on parameters below a path learn; None: they never do.

        Parameters that are not below any path learn from the first step.
        """
        return {}

    @property
    def rate_factors(self) -> dict[tuple[str, ...], float]:
        """By how much the learning rate of parameters below a path differs; others: 1."""
        return {}

    @property
    def couples_batch(self) -> bool:
        """Whether an image's loss depends on the other images."""
        return False

    @property
    def couples_before_measure(self) -> bool:
        """Whether its views, z1 or z2 do already, so that a batch cannot be taken in parts.

        Where only `measure` couples the batch, views, z1 and z2 are arrays whose first axis are the
        images, z1 and z2 of floats.
        """
        return self.couples_batch

    @property
    def for_evaluation(self) -> Objective:
        """The same objective without what only training does to an image or a label."""
        return self

    @property
    def encoder(self) -> ViT:
        """f."""
        return self.setting.encoder

    @abstractmethod
    def init(self, key: jax.Array, encoder: Params | None = None) -> tuple[Params, State]:
        """Fresh parameters and state from a scalar key; f starts from `encoder` where given."""

    def furnish(self, read: Read, images: Images) -> Callable[[State], State] | None:
        """What completes the state of `init` before the first step of a new run; None: nothing.

        It is for what no program of a key computes: the parameters of another run, something fitted
        to the training images. What `read` cannot give is a UserError at once; the function that is
        returned does what takes long. What it adds are NumPy arrays, the same on every process.
        """
        del read, images
        return None

    @abstractmethod
    def transform(self, pixels: Any, keys: jax.Array) -> tuple[View, ...]:
        """T1(x), T2(x), … of `pixels` float32 [B, H, W, 3] in [0, 1], drawn by `keys` [B].

        An objective with `crops` gets a tuple: the image, then each of these.
        """

    @abstractmethod
    def target(self, params: Params, state: State, view: View, batch: Batch, keys: Any) -> Any:
        """z2: what the encoded view is compared with."""

    @abstractmethod
    def measure(
        self, params: Params, state: State, z1: Features, z2: Any, view1: View, view2: View
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """M(z1, z2) for each image [B], and metrics [B]."""

    def source(self, params: Params, view: View, keys: jax.Array | None = None) -> Any:
        """z1: f(view), and whatever of M looks at one view alone."""
        return self.encode(params, view, keys)

    def advance(self, params: Params, state: State, step: jax.Array) -> State:
        """The state with which step number `step` runs: an EMA moves before the forward pass."""
        del params, step
        return state

    def observe(
        self, state: State, sources: dict[int, Any], targets: dict[int, Any], weight: jax.Array
    ) -> State:
        """The state after a forward pass: a center moves by the targets that it has seen.

        `sources` and `targets` are z1 and z2 by the number of their view, `weight` [B] is 0 for
        padding.
        """
        del sources, targets, weight
        return state

    def encode(self, params: Params, view: View, keys: jax.Array | None = None) -> Features:
        """f(view)."""
        return self.encoder.apply(
            {"params": params["encoder"]}, view.pixels, view.visible, view.kept, keys
        )  # type: ignore[return-value]

    def terms(
        self,
        params: Params,
        state: State,
        batch: Batch,
        keys: jax.Array,
        is_training: bool = True,
    ) -> Terms:
        """Eq. (1) for every image of a batch.

        Args:
          batch: the global batch, B images.
          keys: one key an image [B], which follow from (seed, step, position).
          is_training: whether drop path acts.
        """
        represented = self.represent(params, state, batch, keys, is_training)
        return self.compare(params, state, *represented, batch.weight)

    def represent(
        self,
        params: Params,
        state: State,
        batch: Batch,
        keys: jax.Array,
        is_training: bool = True,
    ) -> tuple[tuple[View, ...], dict[int, Any], dict[int, Any]]:
        """The views of a batch, and z1 and z2 by the number of their view; arguments of `terms`."""
        transform_keys, encode_keys, target_keys = split(keys, 3)
        images = jax.tree.map(unit_range, (batch.image, *batch.crops))
        views = self.transform(images if batch.crops else images[0], transform_keys)
        z1 = {
            i: self.source(params, views[i], fold(encode_keys, i) if is_training else None)
            for i in {i for i, _ in self.pairs}
        }
        z2 = {
            j: self.target(
                params, state, views[j], batch, fold(target_keys, j) if is_training else None
            )
            for j in {j for _, j in self.pairs}
        }
        return views, z1, z2

    def compare(
        self,
        params: Params,
        state: State,
        views: tuple[View, ...],
        z1: dict[int, Any],
        z2: dict[int, Any],
        weight: jax.Array,
    ) -> Terms:
        """`terms` of what `represent` returns; `weight` [B] is 0 for padding."""
        measured = [
            self.measure(params, state, z1[i], z2[j], views[i], views[j]) for i, j in self.pairs
        ]
        loss, metrics = jax.tree.map(lambda *terms: sum(terms) / len(terms), *measured)
        return Terms(loss, metrics, self.observe(state, z1, z2, weight))

    def loss(
        self, params: Params, state: State, batch: Batch, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, tuple[State, dict[str, jax.Array]]]:
        """The mean of `terms`, weighted by `batch.weight`: loss [], (state, metrics).

        This is what the train step differentiates; `step`, int32 [], are the steps taken so far.
        """
        state = self.advance(jax.lax.stop_gradient(params), state, step)
        return weighted(self.terms(params, state, batch, keys), batch.weight)

    def evaluate(
        self, params: Params, state: State, batch: Batch, keys: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums of the loss and metrics over a batch, and `count`, the images summed."""
        terms = self.terms(params, state, batch, keys, is_training=False)
        sums = {"loss": terms.loss, **terms.metrics}
        return {k: (batch.weight * v).sum() for k, v in sums.items()} | {
            "count": batch.weight.sum()
        }

    def summarize(self, metrics: dict[str, Any]) -> dict[str, float]:
        """What an evaluation comes to: `metrics` are the means over its images.

        They are numbers, and NumPy arrays where `evaluate` has summed arrays.
        """
        return metrics

    def pictures(self, params: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
        """What is worth looking at: named images float32 [B, H, W, 3] in [0, 1], or nothing."""
        del params, batch, keys
        return {}

    def init_encoder(self, key: jax.Array, start: Params | None = None) -> Params:
        """Parameters of f: those of `start` that it has, fresh ones otherwise.

        A position embedding of another grid is resized as the official MAE does
        (`interpolate_pos_embed`), and a relative position that all blocks share starts that of each
        as in BEiT's fine-tuning. Raises UserError when anything else has another shape than here.
        """
        size = self.encoder.image_size
        fresh = self.encoder.init(key, jnp.zeros((1, size, size, 3)))["params"]
        start = {name: value for name, value in (start or {}).items() if name in fresh}
        if "position" in start:
            side = size // self.encoder.patch_size
            start["position"] = interpolate(jnp.asarray(start["position"]), side)
        if len(start.get("relative_position", ())) == 1:
            table = start["relative_position"]
            start["relative_position"] = jnp.repeat(table, len(fresh["relative_position"]), axis=0)
        for name, value in start.items():
            theirs, ours = jax.tree.map(jnp.shape, value), jax.tree.map(jnp.shape, fresh[name])
            if theirs != ours:
                raise UserError(
                    f"init_from: {name} of that encoder is {theirs}, here it is {ours}; give "
                    "encoder.* the values of that run"
                )
        return {**fresh, **start}


def make_objective(section: Mapping[str, Any], setting: Setting) -> Objective:
    """The objective that a config's `objective` section describes.

    `name` is a name of `OBJECTIVES`, or `module:Class` for one that lives outside the library.
    Raises UserError for an unknown name or field and for a combination that cannot work.
    """
    fields = dict(section)
    name = str(fields.pop("name", ""))
    where = OBJECTIVES.get(name, name)
    if ":" not in where:
        raise UserError(
            f"unknown objective.name={name!r}{nearest(name, OBJECTIVES)}; "
            "module:Class names one of your own"
        )
    module, _, attribute = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"objective.name={name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise UserError(f"objective.name={name!r} is not a subclass of {Objective.__name__}")
    return schema.from_mapping(found, fields, "objective", setting=setting)
