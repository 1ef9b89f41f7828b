"""From a config to a run: open the data, build every part, check that they fit, write nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from occinv import parallel
from occinv.data.loader import EvalLoader, LoaderSpec, TrainLoader
from occinv.data.open_source import open_source
from occinv.data.source import Source
from occinv.data.subset import select
from occinv.models.vit import Pretrained, vit_of
from occinv.objectives.base import Obtained
from occinv.schema import Duration, Experiment, UserError
from occinv.train import workdir as files
from occinv.train.check import check_config
from occinv.train.memory import check_memory
from occinv.train.start_state import start_state
from occinv.train.step import Assembly, TrainState, assemble, initializer
from occinv.train.wandb_writer import check_wandb


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked config with its data.

    Attributes:
      assembly: The part without data.
      loader: The training images.
      validation: The validation images, or None.
      classes: The names of the classes.
      pretrained: Networks to start from; or None.
      start: The whole state to start from, as NumPy arrays; or None.
      obtain: Functions that load or fit parts of the objective's state, by name.
    """

    assembly: Assembly
    loader: TrainLoader
    validation: EvalLoader | None
    classes: tuple[str, ...]
    pretrained: Pretrained | None
    start: TrainState | None
    obtain: dict[str, Callable[[], Any]]

    @property
    def sources(self) -> dict[str, Source]:
        """The images by part: `training`, and `validation` if there are some."""
        loaders = {"training": self.loader, "validation": self.validation}
        return {part: loader.source for part, loader in loaders.items() if loader is not None}

    def every(self, interval: Duration | None) -> int:
        """Return an interval in steps, at least 1; None: once, at the end."""
        run = self.assembly
        if interval is None:
            return run.steps
        return max(1, interval.in_steps(run.experiment.train.batch_size, run.epoch))


def prepare(experiment: Experiment) -> Run:
    """Build a run and check it. Raises UserError; writes nothing."""
    data, train = experiment.data, experiment.train
    check_config(experiment)
    check_wandb(train.wandb)
    pretrained = None
    if experiment.init_from is not None:
        before = files.load_run(experiment.init_from)
        params = before.params
        if experiment.init == "encoder":
            params = {"encoder": params["encoder"]}
        pretrained = Pretrained(params, vit_of(before.experiment).grid)
    everything = open_source(data.source, train=True, data_dir=data.data_dir, classes=data.classes)
    validation = open_validation(experiment, everything)
    source = select(everything, data, experiment.seed)
    # With data.num_images the length of an epoch is that of the full data set.
    epoch = len(source if data.num_images is None else everything)
    mesh = parallel.make_mesh(fsdp=train.fsdp)
    assembly = assemble(experiment, mesh, len(source.classes), epoch, validation is not None)
    objective = assembly.objective
    spec = LoaderSpec(
        batch_size=train.batch_size,
        image_size=data.image_size,
        channels=data.channels,
        crop_scale=data.crop_scale,
        flip=data.flip,
        crops=objective.crops,
        num_threads=data.num_threads,
        num_workers=data.num_workers,
        max_corrupt=data.max_corrupt,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        seed=experiment.seed,
        rand_augment=data.rand_augment,
        scaled_decoding=data.scaled_decoding,
        resize_ratio=data.resize_ratio,
    )

    def read_run(workdir: str) -> tuple[Experiment, Any]:
        run = files.load_run(workdir)
        return run.experiment, run.params

    def images() -> Iterator[np.ndarray]:
        """Yield the images of one epoch, all of them on every process."""
        alone = dataclasses.replace(spec, process_index=0, process_count=1, rand_augment=False)
        batches = TrainLoader(source, alone).batches(0, max(1, epoch // train.batch_size))
        return (batch.image for batch in batches)

    # Raises UserError where the pretrained networks do not fit.
    init = initializer(objective, assembly.optimizer, mesh)
    shapes = jax.eval_shape(init, np.uint32(0), pretrained)
    check_memory(assembly, shapes)
    start = None
    if experiment.init == "state":
        start = start_state(str(experiment.init_from), shapes, experiment.seed)
    loader = TrainLoader(source, spec)
    eval_loader = None if validation is None else EvalLoader(validation, spec)
    for each in filter(None, (loader, eval_loader)):
        each.check_first()
    return Run(
        assembly=assembly,
        loader=loader,
        validation=eval_loader,
        classes=tuple(source.classes),
        pretrained=pretrained,
        start=start,
        obtain={
            name: part.obtain(read_run, images)
            for name, part in objective.state.items()
            if isinstance(part, Obtained)
        },
    )


def open_validation(experiment: Experiment, source: Source) -> Source | None:
    """Open the validation images; None if the data has none and data.eval_source is not set."""
    data = experiment.data
    spec = data.eval_source or data.source
    opened = open_source(spec, train=False, data_dir=data.data_dir, classes=data.classes)
    if data.eval_source is None and opened.name == source.name:
        return None
    if tuple(opened.classes) != tuple(source.classes) and opened.classes and source.classes:
        raise UserError(
            f"{opened.name} has other classes ({len(opened.classes)}) than {source.name} "
            f"({len(source.classes)}); use data.eval_source with the same classes"
        )
    return opened
