"""The fields of a config: their types, ranges and defaults, and the errors for anything else.

A config file returns an `ml_collections.ConfigDict`. `resolve` turns it into the frozen dataclasses
below, so that the rest of the library reads `experiment.train.batch_size` without further checks.
The sections `objective` and `evals` stay mappings here: `train/check.py` checks them against the
fields of the classes that they name. The `Attributes:` of each class are the meanings that `occinv
config --fields` prints.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt

from occinv.sections import (
    FLOAT32,
    INT32,
    INT53,
    TINY32,
    UnknownField,
    UserError,
    from_mapping,
    plain,
)
from occinv.sections import find_class as find_class
from occinv.sections import nearest as nearest
from occinv.size import divides, shortest

Choice = Literal["random", "one_class", "one_per_class"]
RelativePosition = Literal["shared", "block"]
Attention = Literal["auto", "xla", "pallas", "cudnn"]

Count = Annotated[int, Ge(1), Lt(INT32)]
Several = Annotated[int, Ge(2), Lt(INT32)]
Natural = Annotated[int, Ge(0), Lt(INT32)]
Width = Annotated[int, Ge(1), Le(2**16)]
Depth = Annotated[int, Ge(1), Le(1000)]
Side = Annotated[int, Ge(1), Le(2**14)]
Sizes = Side | tuple[Side, Side]
NonNegative = Annotated[float, Ge(0), Le(FLOAT32)]
Positive = Annotated[float, Gt(0), Ge(TINY32), Le(FLOAT32)]
Fraction = Annotated[float, Gt(0), Ge(TINY32), Le(1)]
Area = Annotated[float, Ge(1e-4), Le(1)]
Rate = Annotated[float, Ge(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
Temperature = Annotated[float, Ge(1e-4), Le(1e4)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Crops = Annotated[int, Ge(0), Le(256)]


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training in exactly one unit.

    Attributes:
      steps: Steps of the optimizer.
      examples: Images, counted each time that a step reads them.
      epochs: Passes over the training images.
      share: A share of `train.duration`, for `optimizer.warmup` and `optimizer.cooldown` only.
    """

    EXPECTED: ClassVar[str] = "a length; set {path}.steps, .examples or .epochs"

    steps: Natural | None = None
    examples: Annotated[int, Ge(0), Lt(INT53)] | None = None
    epochs: NonNegative | None = None
    share: Probability | None = None

    def check_section(self, path: str) -> None:
        """Raise UserError unless exactly one unit is given, is not negative and fits the field."""
        given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        if len(given) > 1:
            both = " and ".join(f"{path}.{k}={v}" for k, v in given.items())
            unit, value = list(given.items())[-1]
            raise UserError(
                f"{both} are both given in one place; give one, such as "
                f"{path}={{{unit!r}: {value}}} in the config file"
            )
        if not given:
            raise UserError(f"{path} has no length; set one of {path}.steps, .examples, .epochs")
        if "share" in given and path not in ("optimizer.warmup", "optimizer.cooldown"):
            raise UserError(
                f"{path}.share={self.share}: only optimizer.warmup and optimizer.cooldown can be a "
                f"share of the run; set {path}.steps, .examples or .epochs"
            )

    def in_steps(self, batch_size: int, num_examples: int, total_steps: int = 0) -> int:
        """Return the length in steps, rounded.

        Args:
          batch_size: Images in a step.
          num_examples: Images in an epoch.
          total_steps: The steps of the run, of which `share` is a share.
        """
        if self.steps is not None:
            return self.steps
        if self.share is not None:
            return round(self.share * total_steps)
        examples = self.examples if self.epochs is None else self.epochs * num_examples
        return round(typing.cast(float, examples) / batch_size)

    def __str__(self) -> str:
        for unit, value in dataclasses.asdict(self).items():
            if value is not None:
                return f"{value:.0%} of the run" if unit == "share" else f"{value:g} {unit}"
        return "unset"


@dataclasses.dataclass(frozen=True)
class Data:
    """The images, and how the host crops them (docs/data.md).

    Attributes:
      source: The images: photos, digits, folder:PATH, arrow:PATH, tfds:NAME[:SPLIT], or
        module:Class for a source of your own.
      eval_source: The validation images, named as in `source`. None: the validation part of it.
      image_size: Pixels a side of a crop, or its height and width.
      channels: The channels of an image: 3 is RGB, and 1 is gray. Files of images are converted to
        either; other numbers need a source of your own.
      crop_scale: Smallest and largest area of the random resized crop, as a share of the image.
      flip: Whether half of the training images are mirrored.
      scaled_decoding: Whether large JPEGs are decoded at a lower resolution, which is faster.
      rand_augment: Whether the first crop gets RandAugment, as in MAE's fine-tuning. RGB only.
      resize_ratio: In evaluation, the image is resized until it just covers
        image_size / resize_ratio, before the center crop.
      classes: Use only these classes: imagenet100, a file of names, or a comma-separated list.
      list: Train on the images that this file lists.
      per_class: Train on this many images of each class.
      fraction: Train on this share of the images of each class.
      num_images: Train on this many images, while an epoch stays as long as with all (Tables 6-8).
      choose: How `num_images` images are chosen.
      data_dir: The folder of tensorflow_datasets. None: its usual folder.
      max_corrupt: The number of images that may fail to decode before the run fails.
      num_threads: Threads of the host that decode and crop; 0: in the main thread.
      num_workers: Processes that decode and crop, in place of threads. More cores can work than
        with threads. Starting them takes seconds, once for training and for each validation.
    """

    source: str = dataclasses.field(metadata={"example": "'digits'"})
    eval_source: str | None = None
    image_size: Sizes = 224
    channels: Annotated[int, Ge(1), Le(1024)] = 3
    crop_scale: tuple[Area, Area] = (0.2, 1.0)
    flip: bool = True
    scaled_decoding: bool = False
    rand_augment: bool = False
    resize_ratio: Annotated[float, Ge(0.1), Le(1)] = 0.875
    classes: str | None = None
    list: str | None = None
    per_class: Count | None = None
    fraction: Fraction | None = None
    num_images: Count | None = None
    choose: Choice = "random"
    data_dir: str | None = None
    max_corrupt: Natural = 0
    num_threads: Annotated[int, Ge(0), Le(1024)] = 8
    num_workers: Annotated[int, Ge(0), Le(1024)] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", shortest(self.image_size))


@dataclasses.dataclass(frozen=True)
class Encoder:
    """f: a ViT by name; each of its sizes can be set separately.

    Attributes:
      name: The size of the ViT: width, depth and heads.
      patch_size: Pixels a side of a patch, or its height and width.
      width: The width of the tokens. None: that of `name`.
      depth: The number of blocks. None: that of `name`.
      heads: The number of attention heads. None: that of `name`.
      drop_path: The drop path rate of the last block; it grows linearly from 0 at the first.
      train_patch: Whether the patch projection is trained. False: it keeps its initial values,
        for stability, as in MoCo v3.
      train_position: Whether the position embedding is trained. False: it stays sine-cosine.
      relative_position: A learned attention bias instead of a position embedding, as in BEiT: one
        `shared` by all blocks, or one for each `block`.
      layer_scale: The initial value of LayerScale. None: no LayerScale.
      gelu: The GELU of the MLPs: exact (`erf`), or its approximation (`tanh`), as in big_vision.
      pixel_range: Normalize pixels by the mean and deviation of `imagenet` (RGB only), or to
        [-1, 1] (`half`), as in big_vision.
      class_token: Whether there is a class token. False: the mean patch token takes its place in
        the features.
      registers: The number of learned tokens that are not part of the features.
    """

    name: Literal["micro", "tiny", "small", "base", "large", "huge"] = "base"
    patch_size: Sizes = 16
    width: Width | None = None
    depth: Depth | None = None
    heads: Width | None = None
    drop_path: Rate = 0.0
    train_patch: bool = True
    train_position: bool = False
    relative_position: RelativePosition | None = None
    layer_scale: NonNegative | None = None
    gelu: Literal["erf", "tanh"] = "erf"
    pixel_range: Literal["imagenet", "half"] = "imagenet"
    class_token: bool = True
    registers: Annotated[int, Ge(0), Le(1024)] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", shortest(self.patch_size))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer, its learning rate and its weight decay. The defaults are those of MAE.

    docs/configs.md has the equations.

    Attributes:
      name: The optimizer. muon is for the matrices of transformer blocks; other parameters then
        have AdamW.
      base_lr: The peak learning rate for 256 images a step, or with scale `none` for any number.
      scale: The peak at another batch_size: base_lr times batch_size / 256 (`linear`), its square
        root (`sqrt`), or base_lr alone (`none`).
      min_lr: The learning rate at the end of the run.
      warmup: The length of the linear warm-up from 0.
      schedule: The learning rate after the warm-up: a half `cosine` to min_lr; or constant, then
        linear to min_lr over the cooldown (`wsd`: warm-up, stable, decay), so that a run can be
        extended.
      cooldown: The length of the cooldown of `wsd`.
      betas: The decay rates of the moments of AdamW and LAMB; Lion's β1 and β2; the decay rate of
        Adafactor's first moment and the highest one of its second.
      momentum: The momentum of LARS and Muon.
      first_moment: The dtype of the first moment, or momentum.
      trust_coefficient: The trust coefficient of LARS.
      weight_decay: The decoupled weight decay, which is multiplied by the learning rate.
      independent_decay: Whether weight_decay is multiplied by lr / peak instead of the learning
        rate, so that base_lr does not change it.
      final_weight_decay: The weight decay at the end, reached along a cosine. None: constant.
      decay: The parameters with weight decay: `kernels`; also class and mask `tokens`; also
        `positions`; or `all`, with biases and norms.
      layer_decay: The factor of the learning rate for each block below the head, in fine-tuning.
      clip_norm: Clip the gradient to this norm. None: no clipping.
      clip_by: The norm that is clipped: the `global` one, that of each `parameter`, or that of each
        `unit` (column of a matrix) in multiples of the norm of its weights.
      ema_batch: The batch size that the momentum of EMA targets is given for: at another one it is
        momentum ** (batch_size / ema_batch). None: the momentum as given.
    """

    name: Literal["adamw", "lars", "lamb", "lion", "adafactor", "muon"] = "adamw"
    base_lr: NonNegative = 1.5e-4
    scale: Literal["linear", "sqrt", "none"] = "linear"
    min_lr: NonNegative = 0.0
    warmup: Duration = Duration(epochs=20)
    schedule: Literal["cosine", "wsd"] = "cosine"
    cooldown: Duration = Duration(share=0.2)
    betas: tuple[Rate, Rate] = (0.9, 0.95)
    momentum: Rate = 0.9
    first_moment: Literal["float32", "bfloat16"] = "float32"
    trust_coefficient: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    independent_decay: bool = False
    final_weight_decay: NonNegative | None = None
    decay: Literal["kernels", "tokens", "positions", "all"] = "tokens"
    layer_decay: Fraction = 1.0
    clip_norm: Positive | None = None
    clip_by: Literal["global", "parameter", "unit"] = "global"
    ema_batch: Count | None = None

    def peak(self, batch_size: int) -> float:
        """Return the peak of the learning rate for steps of `batch_size` images."""
        share = batch_size / 256
        return self.base_lr * {"linear": share, "sqrt": share**0.5, "none": 1.0}[self.scale]


@dataclasses.dataclass(frozen=True)
class Train:
    """The length of training, the batch, and what is logged and saved.

    Attributes:
      batch_size: The images of a step, over all devices of all processes.
      duration: The length of the run and of every schedule.
      stop_after: An earlier end, in the middle of the schedules. None: no earlier end. Go on later
        with `occinv train --extend`.
      accumulate: The number of parts in which a batch is computed, to save memory.
      fsdp: The number of devices that share one copy of parameters, EMA and optimizer state.
      remat: Whether whole blocks are recomputed in the backward pass. None: where reading costs
        more than computing.
      attention: The backend of attention. auto: by platform (docs/performance.md).
      precision: The dtype of the computation; parameters are float32. auto: bfloat16 on TPUs and
        GPUs, float32 on CPUs.
      log_every: The interval between two log entries.
      evaluate_every: The interval between two evaluations. None: only at the end.
      checkpoint_every: The interval between two checkpoints.
      keep: The number of checkpoints that are kept.
      profile: Trace these steps for TensorBoard: the first, counted from 1, and how many.
      monitors: Also log `norms` (of gradient and update, for each block), `noise_scale` (of the
        gradient, with accumulate >= 2), `rank` (RankMe and variance of the features) or `attention`
        (the entropy of the class token's attention, for each block).
      wandb: The project of Weights & Biases to which the run is logged. None: no logging there.
      max_nonfinite: The number of steps with a non-finite loss or gradient that are skipped before
        the run fails.
    """

    batch_size: Count = 1024
    duration: Duration = Duration(epochs=100)
    stop_after: Duration | None = None
    accumulate: Count = 1
    fsdp: Count = 1
    remat: bool | None = None
    attention: Attention = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: Duration = Duration(steps=50)
    evaluate_every: Duration | None = None
    checkpoint_every: Duration = Duration(epochs=1)
    keep: Count = 3
    profile: tuple[Count, Count] | None = None
    monitors: tuple[Literal["norms", "noise_scale", "rank", "attention"], ...] = dataclasses.field(
        default=(), metadata={"example": "('norms',)"}
    )
    wandb: str | None = None
    max_nonfinite: Natural = 0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run: all its settings.

    Attributes:
      objective: The objective's `name` and its fields.
      data: The images.
      encoder: The ViT f.
      optimizer: The optimizer and its schedule.
      train: The length of training, the batch, and what is logged and saved.
      evals: Evaluators by name, each with its options and its interval `every`
        (docs/evaluators.md).
      init_from: The workdir or checkpoint whose encoder this run starts from. The run takes the
        fields of the encoder's shape, the image size and the channels from it, unless they are set.
      init: What this run takes from `init_from`: the `encoder`; the `params` of all networks; or
        the whole `state`, with EMA target and optimizer state. It starts at step 0.
      seed: The seed of initialization, order and augmentation.
    """

    objective: Mapping[str, Any] = dataclasses.field(metadata={"example": "{'name': 'mae'}"})
    data: Data
    encoder: Encoder = Encoder()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    evals: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict, metadata={"example": "{'knn': {}}"}
    )
    init_from: str | None = None
    init: Literal["encoder", "params", "state"] = "encoder"
    seed: Seed = 0


def resolve(config: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a config describes.

    Raises:
      UserError: A field is wrong, or two fields contradict each other.
    """
    try:
        experiment = from_mapping(Experiment, plain(config), "")
    except UnknownField as error:
        error.config = config
        raise
    if "name" not in experiment.objective:
        raise UserError("objective.name is missing; set it to a name that `occinv list` prints")
    data, train = experiment.data, experiment.train
    patch_size = experiment.encoder.patch_size
    if not divides(patch_size, data.image_size):
        raise UserError(
            f"data.image_size={data.image_size} is not divisible by encoder.patch_size={patch_size}"
        )
    if data.rand_augment and data.channels != 3:
        raise UserError(
            f"data.rand_augment with data.channels={data.channels}, but it changes RGB images; set "
            "data.rand_augment=False"
        )
    if train.batch_size % train.accumulate:
        raise UserError(
            f"train.accumulate={train.accumulate}, expected a divisor of "
            f"train.batch_size={train.batch_size}"
        )
    if experiment.init != "encoder" and experiment.init_from is None:
        raise UserError(f"init={experiment.init!r} needs init_from; set it to the workdir of a run")
    optimizer, peak = experiment.optimizer, experiment.optimizer.peak(train.batch_size)
    if optimizer.min_lr > peak:
        raise UserError(
            f"optimizer.min_lr={optimizer.min_lr} is above the peak of the learning rate, {peak:g} "
            f"(optimizer.base_lr at train.batch_size={train.batch_size} by optimizer.scale="
            f"{optimizer.scale}); lower it"
        )
    if optimizer.independent_decay and optimizer.name in ("lars", "lamb"):
        raise UserError(
            f"optimizer.independent_decay=True with optimizer.name={optimizer.name}, whose trust "
            "ratio includes the weight decay; set independent_decay=False, or use another optimizer"
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
