"""Metric writers: JSON lines, TensorBoard, or several at once.

The methods are those of clu's MetricWriter that the training loop calls. clu's own writers need
TensorFlow, which occinv does not depend on.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class Writer:
    """Writes nothing. A subclass overrides the methods for what its format can hold."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write numbers by name: Python, NumPy or JAX scalars, or arrays of size 1."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Write images by name: [N, H, W, C] with C = 1 or 3, uint8, or float in [0, 1]."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write texts by name, in Markdown."""

    def close(self) -> None:
        """Put everything on disk and close the file. Nothing can be written afterwards."""


class JsonlWriter(Writer):
    """Writes scalars as JSON lines: {"step": 300, "time": 1700000000.0, "loss": 0.41}.

    `time` is in seconds since 1970. JSON has no NaN and no infinity, so they are written as the
    strings "NaN", "Infinity" and "-Infinity", which `read_scalars` converts back. Images and texts
    are not written.

    Args:
      path: The file, in a folder that is created. In an existing file, an incomplete last line is
        removed and new lines are appended.
      resume_step: The step from which the run continues, 0 for the start. Lines of later steps are
        removed in one atomic operation, so that no step occurs twice.

    Raises:
      ValueError: A line of the existing file is not JSON.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            last = math.inf if resume_step is None else resume_step
            kept = [_to_line(line) for line in _read_lines(path) if line["step"] <= last]
            partial = path.with_name(path.name + ".tmp")
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
          ValueError: A value is not one number, or a scalar is called step or time.
        """
        if taken := {"step", "time"} & scalars.keys():
            raise ValueError(f"A scalar cannot be called {min(taken)!r}. Rename it.")
        numbers = {name: to_number(name, value) for name, value in scalars.items()}
        # json.dumps spells NaN and infinities; as strings they are valid JSON.
        line = {name: x if math.isfinite(x) else json.dumps(x) for name, x in numbers.items()}
        self._file.write(_to_line({"step": int(step), "time": time.time()} | line))
        # Only whole lines are visible to a reader, and after a kill.
        self._file.flush()

    def close(self) -> None:
        """Put every line on disk and close the file. A second call does nothing."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


class TensorBoardWriter(Writer):
    """Writes TensorBoard event files through tensorboardX, which does not need TensorFlow.

    Args:
      workdir: The folder of the event files.
      resume_step: The step from which the run continues. TensorBoard hides later steps of earlier
        event files.
    """

    def __init__(self, workdir: Path, *, resume_step: int | None = None) -> None:
        # A run without TensorBoard does not need to load protobuf.
        from tensorboardX import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(workdir), purge_step=purge)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, to_number(name, value), step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        for name, batch in images.items():
            self._writer.add_images(name, to_uint8(name, batch), step, dataformats="NHWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._writer.add_text(name, text, step)

    def close(self) -> None:
        self._writer.close()


class MultiWriter(Writer):
    """Passes every call to each of `writers`, in order."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self.writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        for writer in self.writers:
            writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for writer in self.writers:
            writer.write_texts(step, texts)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JsonlWriter in order, with NaN and infinities as floats.

    An incomplete last line, of a run that was killed or is writing now, is left out.

    Raises:
      FileNotFoundError: The file does not exist.
      ValueError: A line is not JSON.
    """
    return [
        {name: float(value) if isinstance(value, str) else value for name, value in line.items()}
        for line in _read_lines(path)
    ]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    # The text after the last newline is an incomplete line.
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON: {text[:60]!r}. Remove this line."
            ) from error
    return lines


def _to_line(content: Mapping[str, Any]) -> str:
    return json.dumps(content, allow_nan=False) + "\n"


def to_number(name: str, value: Any) -> int | float:
    """Return a scalar as a Python number. Raises ValueError if it is not one number."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "OSU":
        raise ValueError(
            f"Scalar {name!r} is {array.dtype}{list(array.shape)}, expected one number. Reduce it."
        )
    # float() converts bfloat16, too, which item() leaves as it is.
    return int(array.item()) if array.dtype.kind in "biu" else float(array.item())


def to_uint8(name: str, batch: Any) -> np.ndarray:
    """Return images [N, H, W, C] as uint8. Raises ValueError if the shape is another."""
    array = np.asarray(batch)
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(f"Images {name!r} have shape {array.shape}, expected [N, H, W, 1 or 3].")
    if array.dtype == np.uint8:
        return array
    # Rounded here, because tensorboardX truncates and guesses whether floats end at 1 or at 255.
    pixels = np.nan_to_num(np.asarray(array, np.float32)).clip(0, 1) * 255
    return np.rint(pixels).astype(np.uint8)
