"""The interface of evaluators, and the record that each measurement leaves."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from occinv import schema
from occinv.data.batch import Batch
from occinv.data.identity import Images, identify
from occinv.data.loader import EvalLoader, LoaderSpec
from occinv.data.open_source import open_source
from occinv.data.source import Source
from occinv.data.subset import Subset
from occinv.evaluators import EVALUATORS
from occinv.models.vit import ViT
from occinv.objectives.base import Objective
from occinv.parallel import make_mesh
from occinv.schema import Count, UserError
from occinv.version import __version__

Pooling = Literal["class", "mean"]


def option(default: Any, about: str, *, is_protocol: bool = True) -> Any:
    """A field of an evaluator.

    Args:
      default: Its default.
      about: The help text of its command-line option.
      is_protocol: Whether the numbers depend on it, so that records keep it.
    """
    return dataclasses.field(default=default, metadata={"help": about, "is_protocol": is_protocol})


class Result(NamedTuple):
    """The outcome of an evaluator.

    Attributes:
      values: Numbers by name, for tables and TensorBoard.
      text: The same in one line for people.
      details: Curves and per-image results in JSON's types.
      made: Facts about the measurement that the fields of the evaluator do not say.
      pictures: For each image its pictures by name, uint8 [height, width, 3].
      captions: For each image the texts below its pictures by name.
    """

    values: dict[str, float]
    text: str
    details: dict[str, Any] = {}  # noqa: RUF012 (never written to)
    made: dict[str, Any] = {}  # noqa: RUF012
    pictures: Sequence[Mapping[str, np.ndarray]] = ()
    captions: Sequence[Mapping[str, str]] = ()


@dataclasses.dataclass(frozen=True)
class Record:
    """A measurement, and how it was made.

    Attributes:
      evaluator: A name of `EVALUATORS`.
      workdir, objective, step: The model: its run, `objective.name`, and the step.
      images: The images.
      protocol: The options of the evaluator that the numbers depend on, and `Result.made`.
      code: The version of occinv.
      values, details: As in `Result`.
    """

    evaluator: str
    workdir: str
    objective: str
    step: int
    images: Images
    protocol: dict[str, Any]
    code: str
    values: dict[str, float | None]
    details: dict[str, Any]

    @property
    def making(self) -> tuple[tuple[str, str], ...]:
        """Names and values of the facts that comparable records share."""
        images = {"images": self.images.count, "files": self.images.digest}
        protocol = schema.plain(self.protocol)  # JSON turned tuples into lists
        facts = {"evaluator": self.evaluator, **images, **protocol}
        return tuple((name, str(value)) for name, value in sorted(facts.items()))


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model with its data.

    Attributes:
      objective, params: The objective and its parameters by network: `encoder` and those of M.
      data: The `data` section of its config.
      training: The images that it was trained on, a part of the source if the config selects one;
        None if they are not on this machine.
      classes: The names of the classes that it was trained with.
      mesh: The devices that share a batch.
    """

    objective: Objective
    params: dict[str, Any]
    data: schema.Data
    training: Source | None
    classes: tuple[str, ...]
    mesh: jax.sharding.Mesh = dataclasses.field(default_factory=make_mesh)

    @property
    def encoder(self) -> ViT:
        """The encoder f."""
        return self.objective.networks.encoder

    def open(self, source: str | None, num_images: int | None = None) -> tuple[Source, Images]:
        """Open images to evaluate on.

        Args:
          source: As in `data.source`; None: the run's validation images. If there are none, these
            are its training images.
          num_images: The number of images, spread evenly over the source; None: all.

        Raises:
          UserError: The source cannot be opened, or has fewer images.
        """
        data = self.data
        spec = source or data.eval_source or data.source
        classes = None if source else data.classes
        opened = open_source(spec, train=False, data_dir=data.data_dir, classes=classes)
        if num_images is not None:
            if not 1 <= num_images <= len(opened):
                raise UserError(
                    f"{num_images} images requested, expected 1 to {len(opened)}: {opened.name}"
                )
            # Sources are often sorted by class; the first images would all be of one class.
            opened = Subset(opened, np.arange(num_images) * len(opened) // num_images)
        return opened, identify(opened, self.training, is_own=source is None)

    def training_images(self, source: str | None) -> Source:
        """Open the images that features are fitted to: the part of `source` for training.

        None: the training images of the run, with all their classes and without a selection.
        """
        data = self.data
        classes = None if source else data.classes
        spec = source or data.source
        return open_source(spec, train=True, data_dir=data.data_dir, classes=classes)

    def batches(self, images: Source, batch_size: int) -> Iterator[Batch]:
        """Yield this process's rows of all images, cropped as in the run's own evaluation.

        The batch is rounded up to a multiple of the devices.
        """
        shared = -(-batch_size // self.mesh.size) * self.mesh.size
        return self._loader(images, shared, of=jax.process_count()).batches()

    def one_batch(self, images: Source) -> Batch:
        """Return all images in one batch, on every process: pictures need few images."""
        return self._loader(images, len(images)).batch(0)

    def _loader(self, images: Source, batch_size: int, of: int = 1) -> EvalLoader:
        data = self.data
        spec = LoaderSpec(
            batch_size=batch_size,
            image_size=data.image_size,
            channels=data.channels,
            resize_ratio=data.resize_ratio,
            num_threads=data.num_threads,
            max_corrupt=data.max_corrupt,
            process_index=jax.process_index() if of > 1 else 0,
            process_count=of,
        )
        return EvalLoader(images, spec)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator(ABC):
    """A measurement of trained models. The fields are its options, here and on the command line.

    A new evaluator writes `measure`, and `check` if it cannot measure every objective.
    """

    # The images are recorded by themselves.
    source: str | None = option(
        None,
        "Use these images, as in data.source (default: the run's validation images).",
        is_protocol=False,
    )
    num_images: Count | None = option(
        None, "Use N images, spread over the source (default: all).", is_protocol=False
    )

    def check(self, subject: Subject) -> None:
        """Raise UserError if the model cannot be measured, before the images are opened."""
        return

    @abstractmethod
    def measure(self, subject: Subject, images: Source) -> Result:
        """Measure the model on `images`."""


def run_evaluator(
    name: str, evaluator: Evaluator, subject: Subject, workdir: str, objective: str, step: int
) -> tuple[Record, Result]:
    """Measure a model, and record what the measurement was made of.

    Args:
      name: The name of the evaluator.
      evaluator: The evaluator.
      subject: The model.
      workdir, objective, step: As in `Record`.

    Raises:
      UserError: The model or the images cannot be measured.
    """
    evaluator.check(subject)
    source, images = subject.open(evaluator.source, evaluator.num_images)
    result = evaluator.measure(subject, source)
    protocol = {
        field.name: getattr(evaluator, field.name)
        for field in dataclasses.fields(evaluator)
        if field.metadata.get("is_protocol")
    }
    record = Record(
        evaluator=name,
        workdir=workdir,
        objective=objective,
        step=step,
        images=images,
        protocol={**protocol, **result.made},
        code=__version__,
        values={n: v if np.isfinite(v) else None for n, v in result.values.items()},
        details=result.details,
    )
    return record, result


def evaluator_class(name: str) -> type[Evaluator]:
    """Return the class of an evaluator by its name.

    Raises:
      UserError: There is no such evaluator.
    """
    return schema.find_class(EVALUATORS, name, Evaluator, "evaluator ")


def make_evaluator(name: str, options: Mapping[str, Any], path: str = "") -> Evaluator:
    """Build an evaluator from its options.

    Raises:
      UserError: An unknown name or option, or a value out of range.
    """
    return schema.from_mapping(evaluator_class(name), options, path)


def check_labels(subject: Subject, source: str | None) -> None:
    """Raise UserError if the run's own images, which are used without a source, have no labels."""
    if source is None and not subject.classes:
        raise UserError(
            f"{subject.data.source} has no labels, but this evaluator needs classes; give "
            "labeled images with --source"
        )


def token_of(objective: Objective) -> Pooling:
    """Return the token that describes a whole image: the one that the objective trains."""
    return objective.axes.token
