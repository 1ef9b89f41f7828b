"""What a config may say, and the errors when it says otherwise.

A config file returns an `ml_collections.ConfigDict`; `resolve` turns it into the frozen dataclasses
below, so that the rest of the library reads `experiment.train.batch_size` and never asks again
whether a field exists, has the right type or makes sense. The section `objective` stays a plain
mapping here: `make_objective` checks it against the fields of the objective that it names.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")
Choice = Literal["random", "one_class", "one_per_class"]
RelativePosition = Literal["shared", "block"]


class UserError(Exception):
    """A mistake in what the user gave. The command line prints it as one line and exits with 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the choice nearest to `word`, or every choice if none is near.

    Nothing where they are too many to read.
    """
    choices = sorted(choices)
    if near := difflib.get_close_matches(word, choices, n=1, cutoff=0.5):
        return f" (did you mean {near[0]!r}?)"
    return f" (expected one of: {', '.join(choices)})" if len(choices) <= 50 else ""


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training, given in exactly one of its three units and converted once."""

    steps: int | None = None
    examples: int | None = None
    epochs: float | None = None

    def check(self, path: str) -> None:
        """Raises UserError unless exactly one unit is given and is not negative."""
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) > 1:
            both = " and ".join(f"{path}.{k}={v}" for k, v in given.items())
            unset = next(iter(given))
            raise UserError(
                f"{both} are both given; give one (--config.{path}.{unset}=None unsets the other)"
            )
        if not given:
            raise UserError(f"{path} has no length: set one of {path}.steps, .examples, .epochs")
        if next(iter(given.values())) < 0:
            raise UserError(f"{path} is {self}, expected a length of 0 or more")

    def in_steps(self, batch_size: int, num_examples: int) -> int:
        """The nearest whole number of steps of `batch_size` images over `num_examples` images."""
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
    """Which images, and how the host crops them."""

    source: str  # photos | digits | folder:PATH | tfds:NAME[:SPLIT]
    eval_source: str | None = None  # None: the held-out part of `source`
    image_size: int = 224  # pixels a side
    crop_scale: tuple[float, float] = (0.2, 1.0)  # area of the random resized crop; (1, 1): none
    flip: bool = True
    scaled_decoding: bool = False  # training: large JPEGs are decoded smaller: docs/data.md
    rand_augment: bool = False  # of the first crop in training, as MAE fine-tunes: data/augment.py
    resize_ratio: float = 0.875  # evaluation: the short side becomes image_size / resize_ratio
    classes: str | None = None  # only these: imagenet100, a file of names, or names and commas
    list: str | None = None  # train on the images that this file lists: data/selection.py
    per_class: int | None = None  # train on this many images of each class
    fraction: float | None = None  # train on this class-balanced fraction
    num_images: int | None = None  # train on so few; an epoch stays that of all (Tables 6 to 8)
    choose: Choice = "random"  # which num_images: data/selection.py
    data_dir: str | None = None  # where tfds keeps its data sets
    max_corrupt: int = 0  # undecodable images to skip before giving up
    num_threads: int = 8


@dataclasses.dataclass(frozen=True)
class Encoder:
    """f: a ViT by name, any size of which may be set apart."""

    name: Literal["micro", "tiny", "small", "base", "large", "huge"] = "base"
    patch_size: int = 16  # pixels a side
    width: int | None = None  # None: what the name says
    depth: int | None = None
    heads: int | None = None
    drop_path: float = 0.0  # rate at the last block, growing linearly from 0 at the first
    train_position: bool = False  # else the sine-cosine position embedding stays as it is
    # A learned bias of attention instead of it: one for all blocks, or each its own; as BEiT.
    relative_position: RelativePosition | None = None
    layer_scale: float | None = None  # where learned factors on the branches start; None: no such
    gelu: Literal["erf", "tanh"] = "erf"  # tanh: big_vision's
    pixel_range: Literal["imagenet", "half"] = "imagenet"  # half: [-1, 1], as big_vision's


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW (or LARS) with linear warm-up and a cosine schedule, as in the official MAE code."""

    name: Literal["adamw", "lars"] = "adamw"
    base_lr: float = 1.5e-4  # for 256 images a step: lr = base_lr * batch_size / 256
    min_lr: float = 0.0
    warmup: Duration = Duration(epochs=20)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.9  # of LARS
    trust_coefficient: float = 1e-3  # of LARS
    weight_decay: float = 0.05
    final_weight_decay: float | None = None  # reached along a cosine over the run; None: constant
    decay: Literal["kernels", "tokens", "positions", "all"] = "tokens"  # each adds to those before
    layer_decay: float = 1.0  # fine-tuning: each block below the head learns this much slower
    clip_norm: float | None = None
    clip_each: bool = False  # clip each parameter by its own norm, not all by the global one


@dataclasses.dataclass(frozen=True)
class Train:
    """How long, how many at once, and what is written down on the way."""

    batch_size: int = 1024  # global: over all devices of all processes
    duration: Duration = Duration(epochs=100)
    accumulate: int = 1  # parts in which a batch is taken, one after the other
    fsdp: int = 1  # devices that share one copy of parameters, EMA and optimizer state
    remat: bool = False  # compute whole blocks again in the backward pass
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # compute; parameters are float32
    log_every: Duration = Duration(steps=50)
    evaluate_every: Duration | None = None  # None: at the end only
    checkpoint_every: Duration = Duration(epochs=1)
    keep: int = 3  # checkpoints
    max_nonfinite: int = 0  # steps with a non-finite loss or gradient to skip before stopping


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: everything that decides its outcome."""

    objective: Mapping[str, Any]
    data: Data
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    init_from: str | None = None  # a workdir or checkpoint whose encoder this run starts from
    seed: int = 0


def from_mapping(cls: type[T], section: Mapping[str, Any], path: str, **given: Any) -> T:
    """An instance of the dataclass `cls` from the mapping `section` found at `path`.

    `given` are fields that the program sets, which a config may not name. Raises UserError for an
    unknown or missing field and for a value of the wrong type.
    """
    if not isinstance(section, Mapping):
        raise UserError(f"{path}={section!r}: expected a section with fields")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init and f.name not in given}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in section.items():
        where = f"{path}.{name}" if path else name
        if name not in fields:
            raise UserError(f"unknown field {where!r}{nearest(name, fields)}")
        values[name] = _convert(value, hints[name], where)
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{path + '.' if path else ''}{name} is missing")
    return cls(**values, **given)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type `hint`; UserError if it is of another."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), path)
    if origin is Literal:
        if value in args:
            return value
        raise UserError(f"{path}={value!r} is not a choice{nearest(str(value), map(str, args))}")
    if origin is tuple and args[-1] is Ellipsis and isinstance(value, (tuple, list)):
        args = args[:1] * len(value)  # tuple[float, ...]
    if origin is tuple and isinstance(value, (tuple, list)) and len(value) == len(args):
        return tuple(
            _convert(v, a, f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True))
        )
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        built = from_mapping(hint, value, path)
        if isinstance(built, Duration):
            built.check(path)
        return built
    if origin is not None:  # collections.abc.Mapping[...] and the like
        if origin is not tuple and isinstance(value, origin):
            return value
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise UserError(f"{path}={value!r} is {type(value).__name__}, expected {expected}")


def resolve(config: Mapping[str, Any]) -> Experiment:
    """The experiment that a config describes. Raises UserError where it makes no sense."""
    experiment = from_mapping(Experiment, plain(config), "")
    data, encoder, train = experiment.data, experiment.encoder, experiment.train
    optimizer = experiment.optimizer
    for path, value, least in (
        ("seed", experiment.seed, 0),
        ("data.image_size", data.image_size, 1),
        ("data.num_threads", data.num_threads, 0),
        ("data.max_corrupt", data.max_corrupt, 0),
        ("data.num_images", data.num_images, 1),
        ("encoder.patch_size", encoder.patch_size, 1),
        ("encoder.width", encoder.width, 1),
        ("encoder.depth", encoder.depth, 1),
        ("encoder.heads", encoder.heads, 1),
        ("train.batch_size", train.batch_size, 1),
        ("train.fsdp", train.fsdp, 1),
        ("train.keep", train.keep, 1),
        ("train.max_nonfinite", train.max_nonfinite, 0),
        ("optimizer.base_lr", optimizer.base_lr, 0),
        ("optimizer.min_lr", optimizer.min_lr, 0),
        ("optimizer.weight_decay", optimizer.weight_decay, 0),
        ("optimizer.final_weight_decay", optimizer.final_weight_decay, 0),
    ):
        _require(value is None or value >= least, path, value, f"{least} or more")
    if data.image_size % encoder.patch_size:
        raise UserError(
            f"data.image_size={data.image_size} is not divisible by "
            f"encoder.patch_size={encoder.patch_size}"
        )
    _require(experiment.seed < 2**32, "seed", experiment.seed, "less than 2**32")
    _require(
        train.accumulate >= 1 and train.batch_size % train.accumulate == 0,
        "train.accumulate",
        train.accumulate,
        f"a divisor of train.batch_size={train.batch_size}",
    )
    low, high = data.crop_scale
    _require(
        0 < low <= high <= 1, "data.crop_scale", data.crop_scale, "0 < smallest <= largest <= 1"
    )
    parts = ("list", "per_class", "fraction", "num_images")
    given = [name for name in parts if getattr(data, name) is not None]
    if len(given) > 1:
        both = " and ".join(f"data.{name}={getattr(data, name)}" for name in given)
        raise UserError(f"{both} are both given; give one")
    if data.choose != "random" and data.num_images is None:
        raise UserError(f"data.choose={data.choose!r} without data.num_images: how many images?")
    if data.fraction is not None:
        _require(0 < data.fraction <= 1, "data.fraction", data.fraction, "a number in (0, 1]")
    _require(0 <= encoder.drop_path < 1, "encoder.drop_path", encoder.drop_path, "a rate in [0, 1)")
    _require(
        0 < optimizer.layer_decay <= 1,
        "optimizer.layer_decay",
        optimizer.layer_decay,
        "a factor in (0, 1]",
    )
    betas = optimizer.betas
    _require(all(0 <= b < 1 for b in betas), "optimizer.betas", betas, "two rates in [0, 1)")
    norm = optimizer.clip_norm
    _require(norm is None or norm > 0, "optimizer.clip_norm", norm, "a norm above 0")
    return experiment


def _require(holds: bool, path: str, value: Any, expected: str) -> None:
    if not holds:
        raise UserError(f"{path}={value!r}, expected {expected}")


def plain(config: Any) -> Any:
    """A ConfigDict as plain dicts (JSON's types plus tuples), recursively."""
    if isinstance(config, Mapping) or hasattr(config, "to_dict"):
        return {k: plain(v) for k, v in config.items()}
    return config
