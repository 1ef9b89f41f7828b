"""From workdirs to result files: the functions behind `occinv evaluate`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from occinv.data.batch import Batch
from occinv.data.loader import EvalLoader, LoaderSpec
from occinv.data.open_source import open_source
from occinv.data.source import Source
from occinv.data.subset import Subset
from occinv.evaluators.attention import attend
from occinv.evaluators.cka import RATIOS, Curves, Removed, Tokens, cka_curves
from occinv.evaluators.knn import Knn, Pooling, extract, knn
from occinv.evaluators.pictures import save_pictures
from occinv.evaluators.psnr import Psnr, reconstructing, reconstruction_psnr
from occinv.evaluators.reconstructions import triples
from occinv.parallel import make_mesh
from occinv.schema import UserError
from occinv.train.workdir import CONFIG, load_run, write_json

BATCH = 128  # images at once, rounded up to a multiple of the devices

Result = TypeVar("Result", Curves, Psnr, Knn)


@dataclasses.dataclass(frozen=True)
class Measured(Generic[Result]):
    """A result, with the run and the images that it was measured on.

    Attributes:
      workdir: The run, as it was given.
      objective: `objective.name` of its config.
      step: The step of its checkpoint.
      source: The name of the images' source.
      result: The numbers and their settings.
    """

    workdir: str
    objective: str
    step: int
    source: str
    result: Result

    def as_json(self) -> dict[str, Any]:
        """Return the content of the result file: all fields on one level, None for NaN."""
        fields: dict[str, Any] = {**vars(self), **self.result._asdict()}
        del fields["result"]
        if isinstance(self.result, Curves):
            rows = self.result.values.tolist()
            fields["values"] = [[v if np.isfinite(v) else None for v in row] for row in rows]
        return fields


def evaluate_cka(
    workdirs: Sequence[str | Path],
    *,
    source: str | None = None,
    num_images: int | None = None,
    ratios: Sequence[float] = RATIOS,
    tokens: Tokens = "visible",
    removed: Removed = "drop",
    seed: int = 0,
    batch_size: int = BATCH,
    out: str | Path | None = None,
) -> list[Measured[Curves]]:
    """Measure the occlusion invariance of each run's encoder by `cka_curves`.

    Args:
      workdirs: Runs, each as `occinv.train.workdir.load_run` takes it.
      source: The images, as in `data.source`; None: each run's own validation images.
      num_images: The number of images, spread evenly over the source; None: all.
      ratios: Fractions of patches to remove.
      tokens: The tokens that are compared.
      removed: Whether removed patches are dropped or replaced.
      seed: The seed of the masks.
      batch_size: The batch of the estimator, rounded up to a multiple of the devices.
      out: A JSON file for all runs; None: `evaluate/cka.json` in the first workdir.

    Raises:
      UserError: No run is given, or one cannot be read or measured.
    """
    if not workdirs:
        raise UserError("no workdir given, expected one or more")
    found = []
    settings: dict[str, Any] = {"tokens": tokens, "removed": removed, "seed": seed}
    for workdir in workdirs:
        run = _Evaluation(workdir, source, num_images)
        batches = run.batches(batch_size)
        curves = cka_curves(run.encoder, run.params, batches, ratios, mesh=run.mesh, **settings)
        found.append(run.measured(curves))
    settings |= {"batch_size": batch_size, "models": [model.as_json() for model in found]}
    _write(out or folder(workdirs[0]) / "cka.json", settings)
    return found


def evaluate_psnr(
    workdir: str | Path,
    *,
    source: str | None = None,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
    out: str | Path | None = None,
) -> Measured[Psnr]:
    """Measure how well a run reconstructs masked patches by `reconstruction_psnr`.

    Arguments are as in `evaluate_cka`; `out` defaults to `evaluate/psnr.json` in the workdir.

    Raises:
      UserError: The run cannot be read, or its objective does not reconstruct pixels.
    """
    run = _Evaluation(workdir, source, num_images)
    objective, params = run.trained.objective, run.trained.params
    reconstructing(objective)  # fails before the images are opened
    batches = run.batches(batch_size)
    found = run.measured(reconstruction_psnr(objective, params, batches, seed=seed, mesh=run.mesh))
    _write(out or folder(workdir) / "psnr.json", found.as_json())
    return found


def evaluate_knn(
    workdir: str | Path,
    *,
    source: str | None = None,
    num_images: int | None = None,
    neighbors: int = 20,
    temperature: float = 0.07,
    pooling: Pooling = "mean",
    batch_size: int = BATCH,
    out: str | Path | None = None,
) -> Measured[Knn]:
    """Measure the accuracy of weighted nearest neighbors on frozen features by `knn`.

    The neighbors are the training images of the run's source, or of `source`. Other arguments are
    as in `evaluate_cka` and `Knn`; `out` defaults to `evaluate/knn.json` in the workdir.

    Raises:
      UserError: The run cannot be read, or its training and validation images have other classes.
    """
    run = _Evaluation(workdir, source, num_images)
    known = run.open_source(train=True)
    if tuple(known.classes) != tuple(run.images.classes):
        raise UserError(
            f"{known.name} and {run.images.name} have different classes; use a --source with equal "
            "classes"
        )
    training, validation = (
        extract(run.encoder, run.params, run.batches(batch_size, images), run.mesh, pooling)
        for images in (known, run.images)
    )
    top1, top5 = knn(training, validation, neighbors, temperature)
    settings = neighbors, temperature, pooling, len(validation.labels), len(training.labels)
    found = run.measured(Knn(top1, top5, *settings))
    _write(out or folder(workdir) / "knn.json", found.as_json())
    return found


def evaluate_reconstruct(
    workdir: str | Path,
    count: int = 8,
    *,
    source: str | None = None,
    seed: int = 0,
    scale: int | None = None,
    out: str | Path | None = None,
) -> Path:
    """Draw `count` images, spread over the source: original, masked and reconstructed.

    Args:
      workdir: As in `evaluate_cka`.
      count: The number of images.
      source: As in `evaluate_cka`.
      seed: The seed of the masks.
      scale: The enlargement of pixels; None: to about 128 pixels a side.
      out: The grid; None: `evaluate/reconstructions.png` in the workdir. Single pictures are
        written to a folder beside it, named like it without the suffix.

    Returns:
      The path of the grid.

    Raises:
      UserError: As `evaluate_psnr`, or `count` or `scale` is below 1.
    """
    run = _Evaluation(workdir, source, count)
    objective, params = run.trained.objective, run.trained.params
    reconstructing(objective)  # fails before the images are opened
    rows = [triple._asdict() for triple in triples(objective, params, run.one_batch(), seed)]
    path = Path(out) if out else folder(workdir) / "reconstructions.png"
    if jax.process_index() == 0:
        save_pictures(path, rows, run.scale if scale is None else scale)
    return path


def evaluate_attention(
    workdir: str | Path,
    count: int = 8,
    *,
    source: str | None = None,
    block: int = -1,
    out: str | Path | None = None,
) -> Path:
    """Draw the attention of the class token in `count` images, spread over the source.

    `block` is a transformer block from 1 to depth, or from -1 (the last) to -depth. The other
    arguments are as in `evaluate_reconstruct`; `out` defaults to `evaluate/attention.png`.

    Returns:
      The path of the grid.

    Raises:
      UserError: The run cannot be read, or has no such block.
    """
    run = _Evaluation(workdir, source, count)
    depth = run.encoder.depth
    if not 1 <= abs(block) <= depth:
        raise UserError(f"--block {block}, expected 1 to {depth}, or -1 (the last) to -{depth}")
    index = block - 1 if block > 0 else depth + block
    found = attend(run.encoder, run.params, run.one_batch().image, index)
    path = Path(out) if out else folder(workdir) / "attention.png"
    if jax.process_index() == 0:
        captions = [one.captions for one in found]
        save_pictures(path, [one.pictures for one in found], run.scale, captions)
    return path


class _Evaluation:
    """A run at its checkpoint, and the images to evaluate it on."""

    def __init__(self, workdir: str | Path, source: str | None, num_images: int | None) -> None:
        self.workdir = workdir
        self.trained = load_run(workdir)
        self.encoder = self.trained.objective.networks.encoder
        self.params = self.trained.params["encoder"]
        self.mesh = make_mesh()
        self.scale = max(1, round(128 / self.encoder.image_size))  # of pixels in pictures
        self._source = source
        self._num_images = num_images

    def open_source(self, train: bool) -> Source:
        """Open the given source or the run's own, which may have training images only."""
        data = self.trained.experiment.data
        spec = self._source or (None if train else data.eval_source) or data.source
        classes = None if self._source else data.classes
        return open_source(spec, train=train, data_dir=data.data_dir, classes=classes)

    @functools.cached_property
    def images(self) -> Source:
        """The images to evaluate on."""
        opened, count = self.open_source(train=False), self._num_images
        if count is None:
            return opened
        if not 1 <= count <= len(opened):
            raise UserError(f"{count} images requested, expected 1 to {len(opened)}: {opened.name}")
        # Sources are often sorted by class; the first images would all be of one class.
        return Subset(opened, np.arange(count) * len(opened) // count)

    def batches(self, batch_size: int, images: Source | None = None) -> Iterator[Batch]:
        """Yield this process's rows of all images."""
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}, expected 1 or more")
        shared = -(-batch_size // self.mesh.size) * self.mesh.size
        images = self.images if images is None else images
        return self._loader(images, shared, of=jax.process_count()).batches()

    def one_batch(self) -> Batch:
        """Return all images in one batch, on every process: pictures need few images."""
        return self._loader(self.images, len(self.images)).batch(0)

    def _loader(self, images: Source, batch_size: int, of: int = 1) -> EvalLoader:
        """Crop images as in the run's own evaluation, as one of so many processes."""
        data = self.trained.experiment.data
        spec = LoaderSpec(
            batch_size=batch_size,
            image_size=data.image_size,
            resize_ratio=data.resize_ratio,
            num_threads=data.num_threads,
            max_corrupt=data.max_corrupt,
            process_index=jax.process_index() if of > 1 else 0,
            process_count=of,
        )
        return EvalLoader(images, spec)

    def measured(self, result: Result) -> Measured[Result]:
        """Return a result with the run and the images that it was measured on."""
        name, step = str(self.trained.experiment.objective["name"]), self.trained.step
        return Measured(str(self.workdir), name, step, self.images.name, result)


def folder(path: str | Path) -> Path:
    """Return `WORKDIR/evaluate` for a path that `load_run` accepts: a workdir or a path in it."""
    path = Path(path).expanduser().absolute()
    return next(p for p in (path, *path.parents) if (p / CONFIG).exists()) / "evaluate"


def _write(path: str | Path, content: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        write_json(Path(path), content)
