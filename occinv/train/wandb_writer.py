"""A metric writer for Weights & Biases, the extra `occinv[wandb]`."""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from occinv.paths import in_bucket
from occinv.schema import UserError
from occinv.train.disk import read_json, write_json
from occinv.train.writers import Writer, to_number, to_uint8

ID = "wandb_id.json"


def check_wandb(project: str | None) -> None:
    """Raise UserError if a run is to be logged and the package wandb is not installed."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"train.wandb={project!r} needs the package wandb; run `pip install wandb`, or leave "
            "train.wandb out"
        )


class WandbWriter(Writer):
    """Writes scalars, images and the config to a run of Weights & Biases.

    The run has the name of the workdir. A resumed training continues it: its id is in
    `wandb_id.json` in the workdir. wandb's own settings are environment variables, such as
    `WANDB_MODE=offline`.

    Args:
      workdir: The folder of the run. wandb keeps its files there, too, unless
        it is in a bucket.
      project: The project of the run.
      config: The fields of the config.
    """

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]) -> None:
        import wandb

        if not (workdir / ID).exists():
            write_json(workdir / ID, uuid.uuid4().hex)
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            name=workdir.absolute().name,
            id=read_json(workdir / ID),
            resume="allow",
            dir=None if in_bucket(workdir) else str(workdir),
            config=dict(config),
            settings=wandb.Settings(console="off"),  # the progress bar redraws its lines
        )

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        self._run.log({name: to_number(name, x) for name, x in scalars.items()}, step=step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        pictures = {
            name: [self._wandb.Image(image) for image in to_uint8(name, batch)]
            for name, batch in images.items()
        }
        self._run.log(pictures, step=step)

    def close(self) -> None:
        self._run.finish()
