"""The fields of a config: their types, ranges and defaults, and the errors for anything else.

A config file returns an `ml_collections.ConfigDict`. `resolve` turns it into the frozen dataclasses
below, so that the rest of the library reads `experiment.train.batch_size` without further checks.
The section `objective` stays a mapping here: `make_objective` checks it against the fields of the
objective that it names.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

T = TypeVar("T")
Choice = Literal["random", "one_class", "one_per_class"]
RelativePosition = Literal["shared", "block"]
Attention = Literal["auto", "xla", "pallas", "cudnn"]

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Gt(0), Le(1)]
Rate = Annotated[float, Ge(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]


BOUNDS = {
    "greater_than": ">",
    "greater_than_equal": ">=",
    "less_than": "<",
    "less_than_equal": "<=",
}


class UserError(Exception):
    """A mistake in the user's input. The command line prints it as one line and exits with 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the choice nearest to `word`.

    If none is near, list every choice, or nothing if there are more than 50.
    """
    choices = sorted(choices)
    if near := difflib.get_close_matches(word, choices, n=1, cutoff=0.5):
        return f" (did you mean {near[0]!r}?)"
    return f" (expected one of: {', '.join(choices)})" if len(choices) <= 50 else ""


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training in exactly one of three units."""

    steps: int | None = None
    examples: int | None = None
    epochs: float | None = None

    def check(self, path: str) -> None:
        """Raise UserError unless exactly one unit is given and is not negative."""
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) > 1:
            both = " and ".join(f"{path}.{k}={v}" for k, v in given.items())
            unset = next(iter(given))
            raise UserError(
                f"{both} are both given; give one (--config.{path}.{unset}=None unsets the other)"
            )
        if not given:
            raise UserError(f"{path} has no length; set one of {path}.steps, .examples, .epochs")
        if next(iter(given.values())) < 0:
            raise UserError(f"{path} is {self}, expected a length of 0 or more")

    def in_steps(self, batch_size: int, num_examples: int) -> int:
        """Return the length in steps of `batch_size` of `num_examples` images, rounded."""
        if self.steps is not None:
            return self.steps
        examples = self.examples if self.epochs is None else self.epochs * num_examples
        return round(typing.cast(float, examples) / batch_size)

    def __str__(self) -> str:
        for unit, value in dataclasses.asdict(self).items():
            if value is not None:
                return f"{value:g} {unit}"
        return "unset"


@dataclasses.dataclass(frozen=True)
class Data:
    """The images, and how the host crops them."""

    source: str  # photos | digits | folder:PATH | tfds:NAME[:SPLIT]
    eval_source: str | None = None  # None: the validation part of `source`
    image_size: Count = 224  # pixels a side
    crop_scale: tuple[Fraction, Fraction] = (0.2, 1.0)  # area of the random resized crop
    flip: bool = True
    scaled_decoding: bool = False  # decode large JPEGs at a lower resolution: docs/data.md
    rand_augment: bool = False  # RandAugment of the first crop, as MAE's fine-tuning
    resize_ratio: Fraction = 0.875  # evaluation: the short side becomes image_size / resize_ratio
    classes: str | None = (
        None  # only these: imagenet100, a file of names, or a comma-separated list
    )
    list: str | None = None  # train on the images listed in this file: data/selections.py
    per_class: int | None = None  # train on this many images of each class
    fraction: Fraction | None = None  # train on this class-balanced fraction
    num_images: Count | None = None  # train on this many; the epoch length stays (Tables 6-8)
    choose: Choice = "random"  # how num_images are chosen: data/selections.py
    data_dir: str | None = None  # the folder of tensorflow_datasets
    max_corrupt: Natural = 0  # images that may fail to decode before the run fails
    num_threads: Natural = 8


@dataclasses.dataclass(frozen=True)
class Encoder:
    """f: a ViT by name; each of its sizes can be set separately."""

    name: Literal["micro", "tiny", "small", "base", "large", "huge"] = "base"
    patch_size: Count = 16  # pixels a side
    width: Count | None = None  # None: as `name`
    depth: Count | None = None
    heads: Count | None = None
    drop_path: Rate = 0.0  # rate at the last block; it grows linearly from 0 at the first
    train_position: bool = False  # False: the sine-cosine position embedding is fixed
    # BEiT: a learned attention bias instead of a position embedding, for all blocks or for each.
    relative_position: RelativePosition | None = None
    layer_scale: float | None = None  # initial LayerScale; None: off
    gelu: Literal["erf", "tanh"] = "erf"  # tanh: big_vision
    pixel_range: Literal["imagenet", "half"] = "imagenet"  # half: [-1, 1], big_vision
    class_token: bool = True  # False: the mean patch token takes its place in the features
    registers: Natural = 0  # learned tokens that are not part of the features


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (or LARS) with linear warm-up and a cosine schedule, as in the official MAE code."""

    name: Literal["adamw", "lars"] = "adamw"
    base_lr: NonNegative = 1.5e-4  # for 256 images a step: lr = base_lr * batch_size / 256
    min_lr: NonNegative = 0.0
    warmup: Duration = Duration(epochs=20)
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    momentum: float = 0.9  # LARS
    trust_coefficient: float = 1e-3  # LARS
    weight_decay: NonNegative = 0.05
    final_weight_decay: NonNegative | None = None  # reached along a cosine; None: constant
    decay: Literal["kernels", "tokens", "positions", "all"] = "tokens"  # includes earlier groups
    layer_decay: Fraction = 1.0  # fine-tuning: learning-rate factor for each block below the head
    clip_norm: Positive | None = None
    clip_each: bool = False  # clip each parameter by its own norm instead of the global norm


@dataclasses.dataclass(frozen=True)
class Train:
    """The length of training, the batch, and what is logged and saved."""

    batch_size: Count = 1024  # global: over all devices of all processes
    duration: Duration = Duration(epochs=100)  # the length of every schedule
    stop_after: Duration | None = None  # an earlier end, in the middle of the schedules
    accumulate: Count = 1  # number of parts per batch
    fsdp: Count = 1  # devices that share one copy of parameters, EMA and optimizer state
    # Recompute whole blocks in the backward pass. None: where reading costs more than computing.
    remat: bool | None = None
    attention: Attention = "auto"  # the backend; auto: by platform (docs/performance.md)
    precision: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # compute dtype; parameters are float32
    )
    log_every: Duration = Duration(steps=50)
    evaluate_every: Duration | None = None  # None: at the end only
    checkpoint_every: Duration = Duration(epochs=1)
    keep: Count = 3  # checkpoints
    profile: tuple[Count, Count] | None = None  # trace steps: the first, from 1, and how many
    max_nonfinite: Natural = 0  # steps with a non-finite loss or gradient to skip before failing


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: all its settings."""

    objective: Mapping[str, Any]
    data: Data
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    # Evaluators by name, each with its options and `every`: docs/evaluators.md
    evals: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    init_from: str | None = None  # a workdir or checkpoint whose encoder this run starts from
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0


def find_class(registry: Mapping[str, str], name: str, base: type, kind: str) -> Any:
    """Return the class that a name of `registry`, or `module:Class`, stands for.

    Args:
      registry: `module:Class` by name.
      name: The name.
      base: The class that it must be derived from.
      kind: The text before the name in messages, such as `objective.name=`.

    Raises:
      UserError: The name is unknown, or cannot be imported, or is another kind of class.
    """
    shown = f"{kind}{name!r}"
    where = registry.get(name, name)
    if ":" not in where:
        raise UserError(f"unknown {shown}{nearest(name, registry)}; use module:Class for your own")
    module, _, attribute = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{shown} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{shown} is not a subclass of {base.__name__}")
    return found


def from_mapping(cls: type[T], section: Any, path: str, **given: Any) -> T:
    """Build the dataclass `cls` from the mapping `section` found at `path` of a config.

    Args:
      cls: A dataclass; the annotation of each field is its type and range.
      section: A mapping from field names to values; values may be sections themselves.
      path: The position in the config, for messages.
      **given: Fields that the program sets and a config may not name.

    Raises:
      UserError: An unknown or missing field, or a value of the wrong type or out of range.
    """
    if not isinstance(section, Mapping):
        expected = f"a section with fields of {cls.__name__}"
        if cls is Duration:
            expected = f"a length; set {path}.steps, .examples or .epochs"
        raise UserError(f"{path}={section!r}, expected {expected}")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in given}  # type: ignore[arg-type]
    dot = f"{path}." if path else ""
    for name in section:
        if name not in fields:
            raise UserError(f"unknown field {dot + name!r}{nearest(name, fields)}")
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in section:
            raise UserError(f"{dot}{name} is missing")
    values = {name: _value(hints[name], value, dot + name) for name, value in section.items()}
    return cls(**values, **given)


def _value(hint: Any, value: Any, path: str) -> Any:
    """Check `value` against the type `hint`, and build a section."""
    choices = (hint, *typing.get_args(hint))
    section = next(
        (t for t in choices if isinstance(t, type) and dataclasses.is_dataclass(t)), None
    )
    if section is not None and not (value is None and type(None) in choices):
        built = from_mapping(section, value, path)
        if isinstance(built, Duration):
            built.check(path)
        return built
    import pydantic  # here, so that `occinv --help` stays fast

    try:
        return _adapter(hint).validate_python(plain(value))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        kind, given = first["type"], first["input"]
        place = [f"[{index}]" for index in first["loc"] if isinstance(index, int)]
        where = path + "".join(place if kind != "missing" else [])
        expected = first["msg"].removeprefix("Input should be ")
        if kind == "missing":
            expected = "more values"
        elif kind in BOUNDS:
            expected = f"a number {BOUNDS[kind]} {expected.split()[-1]}"
        elif kind == "literal_error":
            expected += nearest(str(given), map(str, typing.get_args(_literal(hint))))
        raise UserError(f"{where}={given!r}, expected {expected}") from error


def _literal(hint: Any) -> Any:
    """Return the `Literal` in a type such as `Literal[...] | None`."""
    choices = (hint, *typing.get_args(hint))
    return next(t for t in choices if typing.get_origin(t) is Literal)


@functools.cache
def _adapter(hint: Any) -> Any:
    import pydantic

    return pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True, allow_inf_nan=False))


def resolve(config: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a config describes.

    Raises:
      UserError: A field is wrong, or two fields contradict each other.
    """
    experiment = from_mapping(Experiment, plain(config), "")
    data, train = experiment.data, experiment.train
    patch_size = experiment.encoder.patch_size
    if data.image_size % patch_size:
        raise UserError(
            f"data.image_size={data.image_size} is not divisible by encoder.patch_size={patch_size}"
        )
    if train.batch_size % train.accumulate:
        raise UserError(
            f"train.accumulate={train.accumulate}, expected a divisor of "
            f"train.batch_size={train.batch_size}"
        )
    if data.crop_scale[0] > data.crop_scale[1]:
        raise UserError(f"data.crop_scale={data.crop_scale}, expected smallest <= largest")
    subsets = ("list", "per_class", "fraction", "num_images")
    given = [
        f"data.{name}={getattr(data, name)}" for name in subsets if getattr(data, name) is not None
    ]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are both given; give one")
    if data.choose != "random" and data.num_images is None:
        raise UserError(f"data.choose={data.choose!r} needs data.num_images; set it")
    return experiment


def plain(config: Any) -> Any:
    """Return a ConfigDict as plain dicts and tuples, recursively."""
    if isinstance(config, Mapping) or hasattr(config, "to_dict"):
        return {k: plain(v) for k, v in config.items()}
    return tuple(map(plain, config)) if isinstance(config, list | tuple) else config
