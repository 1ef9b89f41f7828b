"""Imports a checkpoint of another library as a workdir."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from occinv.models.vit import PixelRange
from occinv.objectives.base import objective_of
from occinv.paths import in_bucket, remove_folder
from occinv.schema import UserError
from occinv.size import Grid
from occinv.train import workdir
from occinv.train.checkpoints import Checkpoints
from occinv.train.lock import LOCK, Lock, lock_workdir
from occinv.weights import Origin
from occinv.weights.checkpoint_file import read_checkpoint
from occinv.weights.import_dalle import read_dalle
from occinv.weights.import_report import ImportedRun, ImportReport
from occinv.weights.import_vit import ViTOptions, read_vit


def import_weights(
    file: Path,
    origin: Origin,
    to: Path,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    pixel_range: PixelRange | None = None,
    grid: Grid | None = None,
    prefix: str | None = None,
) -> ImportReport:
    """Create the workdir `to` with the parameters in `file`, as checkpoint 0 of a run.

    Args:
      file: A PyTorch, safetensors or npz file, or a folder of transformers or timm. Nothing in it
        is executed.
      origin: The code that wrote the file; `auto` recognizes every origin but `dalle`.
      to: A folder that does not exist or is empty.
      heads: Attention heads; None: from the file, or as usual for the width.
      decoder_heads: Attention heads of the decoder; None: width / 32.
      pixel_range: How the encoder normalizes pixels; None: from the file or its config, or as in
        the official code of the origin.
      grid: Rows and columns of patches; None: from the file or its config, or a square number.
      prefix: The start of the keys of the ViT; None: of the teacher or average, if there is one.

    Returns:
      What happened to every key.

    Raises:
      UserError: The file cannot be read, it has no ViT that ours can represent, or `to` is in use.
        Nothing is written then.
    """
    workdir.check_folder(to)
    if (to / LOCK).exists():
        with lock_workdir(to, "Give another folder."):
            pass  # in use is a better reason than not empty
    if to.is_dir() and any(to.iterdir()):
        raise UserError(f"--to {to} is not empty. Expected a new folder.")
    for flag, number in (("--heads", heads), ("--decoder-heads", decoder_heads)):
        if number is not None and number < 1:
            raise UserError(f"{flag} {number} is too small. Expected 1 or more.")
    options = ViTOptions(heads, decoder_heads, pixel_range, grid, prefix)
    if origin == "dalle" and options != ViTOptions():
        raise UserError(
            "--from dalle with --heads, --decoder-heads, --pixel-range, --grid or --prefix. Leave "
            "them out: the tokenizer is not a ViT."
        )
    report = ImportReport()
    contents = read_checkpoint(file)
    try:
        if origin == "dalle":
            run = read_dalle(contents.tree, report)
        else:
            run = read_vit(contents, origin, options, report)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    objective_of(run.experiment, len(run.classes))  # raises UserError for impossible sizes
    _write(to, run)
    return report


def _write(to: Path, run: ImportedRun) -> None:
    """Write the whole workdir or nothing: write it beside its place, then move it.

    A bucket cannot move folders. There, it is written in its place, and removed after an error.
    """
    if in_bucket(to):
        try:
            return _write_run(to, run)
        except BaseException:
            remove_folder(to)
            raise
    to = to.absolute()
    partial = to.parent / f".{to.name}.{os.getpid()}.tmp"
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        # The lock moves with the folder, so no other process can use it before this one ends.
        with contextlib.closing(Lock(partial / LOCK)) as lock:
            lock.take()
            _write_run(partial, run)
            os.replace(partial, to)  # replaces an empty folder, too
    except OSError as error:
        raise UserError(f"--to {to} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_run(folder: Path, run: ImportedRun) -> None:
    identity = workdir.claim(folder, run.experiment, run.classes)
    with Checkpoints(folder / workdir.CHECKPOINTS, run=identity) as checkpoints:
        checkpoints.save(0, {"params": run.params})
