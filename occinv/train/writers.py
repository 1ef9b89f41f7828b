"""Metric writers with clu's interface: JSON lines, TensorBoard, or several at once.

clu's own writers need TensorFlow at import, which the core does without; a writer of clu and one
of these can stand in each other's place.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Writer(Protocol):
    """What a training loop may ask of a writer; the methods of clu's MetricWriter that we use."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Name -> one number (Python, numpy or jax, of size 1)."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Name -> [N, H, W, C], C of 1 or 3: uint8, or float in 0..1."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Name -> text."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Name -> setting of the run, once."""

    def flush(self) -> None:
        """What was written is on disk after this."""

    def close(self) -> None:
        """Flushes; nothing can be written after."""


class JsonlWriter:
    """Scalars as lines of JSON: {"step": 300, "time": 1700000000.0, "loss": 0.41}.

    `time` is in seconds since 1970. NaN and infinities have no JSON number and become the strings
    "NaN", "Infinity" and "-Infinity", which `read_scalars` turns back. Images, texts and
    hyper-parameters have no place in this file and are not written.

    Args:
      path: the file, or a folder to hold `metrics.jsonl`. If it is there, a half-written last line
        is removed and the rest is added to.
      resume_step: the step a run continues from (0: from the start). Lines beyond it are removed,
        in one atomic step, so that no step stands twice after going on.

    Raises:
      ValueError: a line that is there is not JSON.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        self.path = _metrics_file(Path(path))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            last = math.inf if resume_step is None else resume_step
            kept = [line for line in _lines(self.path) if line["step"] <= last]
            partial = self.path.with_name(self.path.name + ".tmp")
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends one line. Raises ValueError if a scalar is called step or time."""
        taken = {"step", "time"} & scalars.keys()
        if taken:
            raise ValueError(f"a scalar cannot be called {', '.join(sorted(taken))}")
        line: dict[str, Any] = {"step": int(step), "time": time.time()}
        line |= {name: _json_number(value) for name, value in scalars.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        # A reader beside the run, and a kill, find whole lines.
        self._file.flush()

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Not written: see the class."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Not written: see the class."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Not written: see the class."""

    def flush(self) -> None:
        """Puts every line on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the file; a second call does nothing."""
        if not self._file.closed:
            self.flush()
            self._file.close()


class TensorBoardWriter:
    """TensorBoard event files, through tensorboardX, so without TensorFlow.

    Args:
      workdir: the folder for the event files.
      resume_step: the step a run continues from; TensorBoard hides what an earlier event file
        says of later steps.
    """

    def __init__(self, workdir: Path, *, resume_step: int | None = None) -> None:
        # Imported here: a run without TensorBoard need not load protobuf.
        from tensorboardX import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(workdir), purge_step=purge)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """As Writer."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, _number(value), step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """As Writer; several images of one name are shown as a grid."""
        for name, batch in images.items():
            self._writer.add_images(name, _images(name, batch), step, dataformats="NHWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """As Writer; shown as Markdown."""
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """As Writer, as a JSON text at step 0 called `hparams`."""
        text = json.dumps(dict(hparams), indent=2, default=str)
        self._writer.add_text("hparams", "```json\n" + text + "\n```", 0)

    def flush(self) -> None:
        """As Writer."""
        self._writer.flush()

    def close(self) -> None:
        """As Writer."""
        self._writer.close()


class MultiWriter:
    """Every call goes to each of `writers`, in order."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """As Writer."""
        for writer in self.writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """As Writer."""
        for writer in self.writers:
            writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """As Writer."""
        for writer in self.writers:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """As Writer."""
        for writer in self.writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """As Writer."""
        for writer in self.writers:
            writer.flush()

    def close(self) -> None:
        """As Writer."""
        for writer in self.writers:
            writer.close()


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """The lines that JsonlWriter wrote, in order, NaN and infinities as floats again.

    Args:
      path: the file, or the folder that holds `metrics.jsonl`. A half-written last line (of a run
        that was killed or is writing now) is left out.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is not JSON.
    """
    return [
        {name: _from_json(value) for name, value in line.items()}
        for line in _lines(_metrics_file(Path(path)))
    ]


def _metrics_file(path: Path) -> Path:
    return path if path.suffix == ".jsonl" else path / "metrics.jsonl"


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    # What stands after the last newline was not written to the end.
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {text[:60]!r}") from error
    return lines


def _number(value: Any) -> int | float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "OSU":
        raise ValueError(f"a scalar is one number, not {array.dtype} of shape {array.shape}")
    # float() also for bfloat16, which .item() would leave as it is.
    item = array.reshape(()).item()
    return int(item) if array.dtype.kind in "biu" else float(item)


def _json_number(value: Any) -> int | float | str:
    number = _number(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _from_json(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def _images(name: str, batch: Any) -> np.ndarray:
    array = np.asarray(batch)
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(f"images {name!r} have shape {array.shape}, expected [N, H, W, 1 or 3]")
    if array.dtype == np.uint8:
        return array
    # Rounded here: tensorboardX truncates, and decides by guess whether floats end at 1 or 255.
    pixels = np.nan_to_num(np.asarray(array, np.float32)).clip(0, 1) * 255
    return np.rint(pixels).astype(np.uint8)
