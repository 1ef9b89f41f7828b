"""What the `evaluate` commands do: a run's checkpoint in, numbers and pictures in files out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from occinv.data.batch import Batch
from occinv.data.loader import EvalLoader
from occinv.data.open_source import open_source
from occinv.data.source import Source
from occinv.data.subset import Subset
from occinv.evaluators import attention
from occinv.evaluators.cka import RATIOS, Removed, Tokens, cka_curves
from occinv.evaluators.knn import Knn, Pooling, extract, knn
from occinv.evaluators.psnr import reconstructing, reconstruction_psnr
from occinv.evaluators.reconstructions import save_grid, save_triples, triples
from occinv.parallel import make_mesh
from occinv.schema import UserError
from occinv.train.workdir import CONFIG, TrainedRun, load_run, write_json

BATCH = 128  # images at once, rounded up to a multiple of the devices


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
) -> dict[str, Any]:
    """Occlusion invariance of each run's encoder: see `cka_curves`.

    Args:
      workdirs: runs, each as `occinv.train.workdir.load_run` takes it.
      source: images to measure on, as `data.source`; None: each run's own held-out images.
      num_images: measure on so many, spread evenly over the source; None: all.
      batch_size: of the minibatch estimator; rounded up to a multiple of the devices.
      out: file for all models together; None: `evaluate/cka.json` in the first run's workdir.

    Returns:
      What is written: the settings, and under `models` for each run its workdir, objective, step,
      source and `ratios`, `blocks`, `values`, `images` of `Curves`.

    Raises:
      UserError: no run given, or one that cannot be read or measured.
    """
    if not workdirs:
        raise UserError("no workdir given, expected one or more")
    mesh = make_mesh()
    models = []
    for path in workdirs:
        trained = load_run(path)
        images = choose_images(trained, source, num_images)
        curves = cka_curves(
            trained.objective.encoder,
            trained.params["encoder"],
            batches(trained, images, mesh, batch_size),
            ratios,
            tokens=tokens,
            removed=removed,
            seed=seed,
            mesh=mesh,
        )
        models.append(_about(path, trained, images) | curves.as_json())
    settings = {"tokens": tokens, "removed": removed, "seed": seed, "batch_size": batch_size}
    return _write(out or folder(workdirs[0]) / "cka.json", {**settings, "models": models})


def evaluate_psnr(
    workdir: str | Path,
    *,
    source: str | None = None,
    num_images: int | None = None,
    seed: int = 0,
    batch_size: int = BATCH,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """How well a run's model reconstructs removed patches: see `reconstruction_psnr`.

    Arguments as `evaluate_cka`; `out` defaults to `evaluate/psnr.json` in the workdir.

    Returns:
      What is written: workdir, objective, step, source, seed, and the fields of `Psnr`.

    Raises:
      UserError: the run cannot be read, or its objective does not reconstruct pixels.
    """
    mesh = make_mesh()
    trained = load_run(workdir)
    reconstructing(trained.objective)  # or else its images need not be there either
    images = choose_images(trained, source, num_images)
    result = reconstruction_psnr(
        trained.objective,
        trained.params,
        batches(trained, images, mesh, batch_size),
        seed=seed,
        mesh=mesh,
    )
    content = _about(workdir, trained, images) | {"seed": seed} | result._asdict()
    return _write(out or folder(workdir) / "psnr.json", content)


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
) -> dict[str, Any]:
    """Accuracy of weighted nearest neighbors among the run's frozen features: see `knn`.

    The neighbors are the training images of the run's source, or of `source`. Other arguments as
    `evaluate_cka`; `out` defaults to `evaluate/knn.json` in the workdir.

    Returns:
      What is written: workdir, objective, step, source, and the fields of `Knn`.
    """
    mesh = make_mesh()
    trained = load_run(workdir)
    images = choose_images(trained, source, num_images)
    data = trained.experiment.data
    classes = None if source else data.classes
    known = open_source(source or data.source, train=True, data_dir=data.data_dir, classes=classes)
    if tuple(known.classes) != tuple(images.classes):
        raise UserError(f"{known.name} and {images.name} have other classes")
    encoder, params = trained.objective.encoder, trained.params["encoder"]
    training, held_out = (
        extract(encoder, params, batches(trained, part, mesh, batch_size), mesh, pooling)
        for part in (known, images)
    )
    top1, top5 = knn(training, held_out, neighbors, temperature)
    settings = (neighbors, temperature, pooling, len(held_out.labels), len(training.labels))
    content = _about(workdir, trained, images) | Knn(top1, top5, *settings)._asdict()
    return _write(out or folder(workdir) / "knn.json", content)


def evaluate_reconstruct(
    workdir: str | Path,
    count: int = 8,
    *,
    source: str | None = None,
    seed: int = 0,
    scale: int | None = None,
    out: str | Path | None = None,
) -> Path:
    """Pictures of `count` images, original, masked and reconstructed, spread over the source.

    Args:
      scale: by which pixels are enlarged; None: so that images have about 128 pixels a side.
      out: the grid; None: `evaluate/reconstructions.png` in the workdir. The single pictures go
        into a folder beside it, of its name without the suffix.

    Returns:
      The path of the grid.

    Raises:
      UserError: as `evaluate_psnr`, or a count or scale below 1.
    """
    trained = load_run(workdir)
    reconstructing(trained.objective)
    images = choose_images(trained, source, count)
    size = trained.experiment.data.image_size
    scale = max(1, round(128 / size)) if scale is None else scale
    if scale < 1:
        raise UserError(f"scale={scale}, expected 1 or more")
    # On one device: pictures are few.
    loader = _loader(trained, images, len(images))
    found = triples(trained.objective, trained.params, loader.batch(0), seed)
    path = Path(out) if out else folder(workdir) / "reconstructions.png"
    if jax.process_index() == 0:
        save_triples(path.with_suffix(""), found, scale)
        save_grid(path, found, scale)
    return path


def evaluate_attention(
    workdir: str | Path,
    count: int = 8,
    *,
    source: str | None = None,
    block: int = -1,
    out: str | Path | None = None,
) -> Path:
    """Pictures of what the class token attends to in `count` images, spread over the source.

    Args:
      block: 1 to depth, as in the curves of CKA, or -1 for the last, -2 for the one before it, ….
      out: the grid; None: `evaluate/attention.png` in the workdir. The single pictures go into a
        folder beside it, of its name without the suffix.

    Returns:
      The path of the grid.

    Raises:
      UserError: the run cannot be read, or has no such block.
    """
    trained = load_run(workdir)
    encoder = trained.objective.encoder
    if not 1 <= abs(block) <= encoder.depth:
        raise UserError(
            f"--block {block}, expected 1 to {encoder.depth}, or -1 to -{encoder.depth} from the "
            "last on"
        )
    images = choose_images(trained, source, count)
    loader = _loader(trained, images, len(images))
    index = block - 1 if block > 0 else encoder.depth + block
    found = attention.attend(encoder, trained.params["encoder"], loader.batch(0).image, index)
    path = Path(out) if out else folder(workdir) / "attention.png"
    if jax.process_index() == 0:
        attention.save_maps(path.with_suffix(""), found, max(1, round(128 / encoder.image_size)))
        attention.save_grid(path, found)
    return path


def choose_images(trained: TrainedRun, source: str | None, num_images: int | None) -> Source:
    """The images to evaluate on: see `evaluate_cka`. A run without held-out images has its own."""
    data = trained.experiment.data
    spec = source or data.eval_source or data.source
    classes = None if source else data.classes
    opened = open_source(spec, train=False, data_dir=data.data_dir, classes=classes)
    if num_images is None:
        return opened
    if not 1 <= num_images <= len(opened):
        raise UserError(
            f"{num_images} images asked for, expected 1 to {len(opened)}: {opened.name}"
        )
    # Sources are often sorted by class: the first images would be all of one.
    return Subset(opened, np.arange(num_images) * len(opened) // num_images)


def batches(
    trained: TrainedRun, images: Source, mesh: Mesh, batch_size: int = BATCH
) -> Iterator[Batch]:
    """This process's rows of every image, as the run's own evaluation crops them."""
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}, expected 1 or more")
    shared = -(-batch_size // mesh.size) * mesh.size
    here, of = jax.process_index(), jax.process_count()
    return _loader(trained, images, shared, here, of).batches()


def _loader(
    trained: TrainedRun,
    images: Source,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalLoader:
    data = trained.experiment.data
    return EvalLoader(
        images,
        batch_size=batch_size,
        image_size=data.image_size,
        resize_ratio=data.resize_ratio,
        num_threads=data.num_threads,
        max_corrupt=data.max_corrupt,
        process_index=process_index,
        process_count=process_count,
    )


def folder(path: str | Path) -> Path:
    """`<workdir>/evaluate`, for a workdir or a path in it that `load_run` has accepted."""
    path = Path(path).expanduser().absolute()
    return next(p for p in (path, *path.parents) if (p / CONFIG).exists()) / "evaluate"


def _about(path: str | Path, trained: TrainedRun, images: Source) -> dict[str, Any]:
    return {
        "workdir": str(path),
        "objective": str(trained.experiment.objective["name"]),
        "step": trained.step,
        "source": images.name,
    }


def _write(path: str | Path, content: dict[str, Any]) -> dict[str, Any]:
    if jax.process_index() == 0:
        write_json(Path(path), content)
    return content
