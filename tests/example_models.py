"""Small untrained models and batches."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from occinv import schema
from occinv.data.batch import Batch
from occinv.data.open_source import open_source
from occinv.evaluators.base import Subject
from occinv.models.vit import ViT, make_vit
from occinv.objectives import forward
from occinv.objectives.base import Objective, Setting, make_objective
from occinv.parallel import make_mesh
from occinv.train.checkpoints import Checkpoints
from occinv.train.workdir import claim

SIZE, PATCH, N, WIDTH, DEPTH = 32, 8, 16, 16, 2
DECODER = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def make(section: dict[str, Any], seed: int = 0) -> tuple[Objective, dict[str, Any]]:
    """Return an objective on a tiny encoder, and random parameters of which none is zero."""
    sizes = schema.Encoder(name="micro", patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=2)
    encoder = make_vit(sizes, SIZE)
    objective = make_objective(section, Setting(encoder, num_classes=3, total_steps=1))
    # Running `init` would compile for seconds.
    shapes, _ = jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    generator = np.random.default_rng(seed)
    return objective, jax.tree.map(
        lambda x: generator.normal(size=x.shape).astype(np.float32) / x.shape[0] ** 0.5, shapes
    )


def encoder_of(section: dict[str, Any]) -> tuple[ViT, dict[str, Any]]:
    """Return f of `make`, and its parameters."""
    objective, params = make(section)
    return objective.networks.encoder, params["encoder"]


@functools.partial(jax.jit, static_argnames=("encoder", "kept"))
def encode(
    encoder: ViT, params: Any, pixels: jax.Array, visible: Any = None, kept: int | None = None
) -> Any:
    """Return `Features` of pixels in [0, 1], computed by the module itself."""
    return encoder.apply({"params": params}, pixels, visible, kept)


def images(count: int, first: int = 0) -> Batch:
    """Return `count` images with large areas of color; image i is the same in every batch."""
    made = []
    for index in range(first, first + count):
        generator = np.random.default_rng(index)
        coarse = generator.integers(0, 256, (4, 4, 3))
        fine = generator.integers(-20, 20, (SIZE, SIZE, 3))
        made.append(np.clip(coarse.repeat(8, 0).repeat(8, 1) + fine, 0, 255).astype(np.uint8))
    return Batch(
        image=np.stack(made),
        label=np.zeros(count, np.int32),
        index=np.arange(first, first + count, dtype=np.int32),
        weight=np.ones(count, np.float32),
    )


def rows(batch: Batch, chosen: Any) -> Batch:
    """Return the rows `chosen` of a batch, in this order."""
    return jax.tree.map(lambda x: x[chosen], batch)


def padded(batch: Batch, count: int) -> Batch:
    """Return the batch with `count` rows of padding after it, whose pixels are not zero."""
    size = len(batch.label)
    return Batch(
        image=np.concatenate([batch.image, np.full((count, SIZE, SIZE, 3), 200, np.uint8)]),
        label=np.append(batch.label, np.full(count, -1, np.int32)),
        index=np.append(batch.index, np.full(count, -1, np.int32)),
        weight=(np.arange(size + count) < size).astype(np.float32),
    )


def subject(section: dict[str, Any], seed: int = 0, devices: int = 1, **data: Any) -> Subject:
    """Return the model of `make` as a run on `digits`, or on other `data`."""
    objective, params = make(section, seed)
    fields = {"source": "digits", "image_size": SIZE, "resize_ratio": 1.0, **data}
    training = open_source(fields["source"], train=True)
    mesh = make_mesh(jax.devices()[:devices])
    return Subject(
        objective, params, schema.Data(**fields), training, tuple(training.classes), mesh
    )


def noise_images(folder: Path, seed: int = 0, count: int = 20) -> Path:
    """Write a folder of `count` images of random pixels of each of the classes a, b and c."""
    generator = np.random.default_rng(seed)
    for name in "abc":
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


def at_most_by_chance(chance: float, count: int) -> float:
    """Return three deviations above the accuracy of guesses on `count` images."""
    return chance + 3 * (chance * (1 - chance) / count) ** 0.5


def save_run(
    workdir: Path,
    section: dict[str, Any],
    steps: tuple[int, ...] = (3,),
    classes: tuple[str, ...] = ("a", "b", "c"),
    **data: Any,
) -> Path:
    """Write the workdir of a run on `digits`, or on other `data`.

    The parameters of step s are `make(section, s)`.
    """
    experiment = schema.resolve(
        {
            "objective": section,
            "data": {"source": "digits", "image_size": SIZE, "resize_ratio": 1.0, **data},
            "encoder": {
                "name": "micro",
                "patch_size": PATCH,
                "width": WIDTH,
                "depth": DEPTH,
                "heads": 2,
            },
        }
    )
    identity = claim(workdir, experiment, classes)
    with Checkpoints(workdir / "checkpoints", run=identity) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"params": make(section, step)[1]})
    return workdir
