"""Metric writers: JSON lines, TensorBoard, or several at once.

The methods are those of clu's MetricWriter that the training loop calls. clu's own writers need
TensorFlow, which occinv does not depend on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from occinv.train.disk import naming, read_bytes, write_bytes, write_text

EVENTS = "events.out.tfevents.*"
SHOWN = 30  # seconds until an event is in the file, for a TensorBoard that watches the run

log = logging.getLogger("occinv.train")


class Writer:
    """Writes nothing. A subclass overrides the methods for what its format can hold."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write numbers by name: Python, NumPy or JAX scalars, or arrays of size 1."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Write images by name: [N, H, W, C] with C = 1 or 3, uint8, or float in [0, 1]."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write texts by name, in Markdown."""

    def flush(self) -> None:
        """Put everything on disk."""

    def close(self) -> None:
        """Put everything on disk and close the file. Nothing can be written afterwards."""


class JsonlWriter(Writer):
    """Writes scalars as JSON lines: {"step": 300, "time": 1700000000.0, "loss": 0.41}.

    `time` is in seconds since 1970. JSON has no NaN and no infinity, so they are written as the
    strings "NaN", "Infinity" and "-Infinity", which `read_scalars` converts back. Images and texts
    are not written.

    Args:
      path: The file, in a folder that is created. In an existing file, broken lines are removed,
        with a warning, and new lines are appended.
      resume_step: The step from which the run continues. Lines of later steps are removed in one
        atomic operation, so that no step occurs twice.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            last = math.inf if resume_step is None else resume_step
            kept = [_to_line(line) for line in read_scalars(path) if line["step"] <= last]
            write_text(path, "".join(kept))
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
          ValueError: A value is not one number, or a scalar is called step or time.
        """
        if taken := {"step", "time"} & scalars.keys():
            raise ValueError(f"A scalar cannot be called {min(taken)!r}. Rename it.")
        numbers = {name: to_number(name, value) for name, value in scalars.items()}
        with naming(self._path):
            self._file.write(_to_line({"step": int(step), "time": time.time()} | numbers))
            # Only whole lines are visible to a reader, and after a kill.
            self._file.flush()

    def flush(self) -> None:
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Put every line on disk and close the file. A second call does nothing."""
        if not self._file.closed:
            try:
                self.flush()
            finally:
                self._file.close()


class TensorBoardWriter(Writer):
    """Writes TensorBoard event files with tensorboardX, which does not need TensorFlow.

    tensorboardX's SummaryWriter hands events to a thread, so that a flush would miss the last ones.
    This class writes to the file itself.

    Args:
      workdir: The folder of the event files.
      resume_step: The step from which the run continues. Later steps are removed from earlier event
        files, and a TensorBoard that has already read them hides them.
    """

    def __init__(self, workdir: Path, *, resume_step: int | None = None) -> None:
        # A run without TensorBoard does not need to load protobuf.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        workdir.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            for path in workdir.glob(EVENTS):
                _cut_events(path, resume_step)
        # Two starts within a second must not write to one file.
        self._writer = EventsWriter(str(workdir / "events"), f".{time.time_ns()}")
        self._workdir, self._flushed = workdir, time.monotonic()
        if resume_step is not None:
            self._write(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        from tensorboardX import summary

        for name, value in scalars.items():
            self._write(step, summary=summary.scalar(name, to_number(name, value)))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        from tensorboardX import summary

        for name, batch in images.items():
            pixels = to_uint8(name, batch)
            self._write(step, summary=summary.image(name, pixels, dataformats="NHWC"))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        from tensorboardX import summary

        for name, text in texts.items():
            self._write(step, summary=summary.text(name, text))

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with naming(self._workdir):
            self._writer.write_event(Event(step=int(step), wall_time=time.time(), **content))
        if time.monotonic() - self._flushed > SHOWN:
            self.flush()

    def flush(self) -> None:
        with naming(self._workdir):
            self._writer.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def _cut_events(path: Path, last: int) -> None:
    """Remove the events of later steps than `last` from an event file, and broken events."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    kept, content = [], path.read_bytes()
    for record, payload in event_records(content):
        try:
            event = Event.FromString(payload)
        except DecodeError:
            log.warning("%s: dropped an event, which is broken", path)
            continue
        if event.step <= last or event.HasField("session_log"):
            kept.append(record)
    if len(shorter := b"".join(kept)) < len(content):
        write_bytes(path, shorter)


def event_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each complete record of an event file, and the event in it.

    A record is the length of the event (8 bytes), its checksum (4), the event, and its checksum
    (4).
    """
    while len(content) >= 12:
        size = struct.unpack_from("<Q", content)[0] + 16
        if len(content) < size:
            return
        yield content[:size], content[12 : size - 4]
        content = content[size:]


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

    def flush(self) -> None:
        for writer in self.writers:
            writer.flush()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # the others are closed even if one fails
            for writer in self.writers:
                stack.callback(writer.close)


def read_scalars(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JsonlWriter in order, with NaN and infinities as floats.

    Broken lines and an incomplete last line, of a run that was killed or is writing now, are left
    out with a warning.

    Raises:
      FileNotFoundError: The file does not exist.
      UserError: The file cannot be read.
    """
    lines = []
    texts = read_bytes(path).split(b"\n")
    for number, text in enumerate(texts, start=1):
        try:
            if number == len(texts):  # the text after the last newline is an incomplete line
                raise ValueError
            lines.append(_read_line(text))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            if text or number < len(texts):
                log.warning("%s: dropped line %d, which is broken: %r", path, number, text[:60])
    return lines


def _read_line(text: bytes) -> dict[str, Any]:
    content = json.loads(text)
    floats = {name: float(value) for name, value in content.items()}
    line = {name: v if isinstance(v, int) else floats[name] for name, v in content.items()}
    return {**line, "step": int(line["step"])}


def _to_line(content: Mapping[str, int | float]) -> str:
    # json.dumps spells NaN and infinities; as strings they are valid JSON.
    spelled = {name: x if math.isfinite(x) else json.dumps(x) for name, x in content.items()}
    return json.dumps(spelled, allow_nan=False) + "\n"


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
