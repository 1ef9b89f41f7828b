"""The metrics of a run in files: JSON lines, and events of TensorBoard."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from occinv.paths import in_bucket
from occinv.train.disk import write_bytes
from occinv.train.workdir import METRICS
from occinv.train.writers import EVENTS, JsonlWriter, MultiWriter, TensorBoardWriter

SHOWN = 60  # seconds until a metric is in the bucket, for a reader that watches the run


def file_writer(workdir: Path, resume_step: int) -> MultiWriter:
    """Return the writer of the files of a workdir, which continues after `resume_step`."""
    if in_bucket(workdir):
        return BucketWriter(workdir, resume_step)
    return MultiWriter(
        [
            JsonlWriter(workdir / METRICS, resume_step=resume_step),
            TensorBoardWriter(workdir, resume_step=resume_step),
        ]
    )


class BucketWriter(MultiWriter):
    """Writes files on the disk and copies them to a bucket, where nothing can be appended.

    Every `flush` copies, so that a checkpoint is never without the metrics before it. Scalars are
    copied once a minute, too.

    Args:
      workdir: The folder in the bucket. Its files are continued.
      resume_step: The step after which the run continues.
    """

    def __init__(self, workdir: Path, resume_step: int) -> None:
        self._workdir, self._folder = workdir, Path(tempfile.mkdtemp(prefix="occinv-"))
        for path in (workdir / METRICS, *workdir.glob(EVENTS)):
            if path.exists():
                (self._folder / path.name).write_bytes(path.read_bytes())
        self._copied = self._state()
        self._time = time.monotonic()
        super().__init__(file_writer(self._folder, resume_step).writers)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        super().write_scalars(step, scalars)
        if time.monotonic() - self._time > SHOWN:
            self.flush()

    def flush(self) -> None:
        super().flush()
        self._copy()

    def close(self) -> None:
        super().close()
        self._copy()
        shutil.rmtree(self._folder)

    def _copy(self) -> None:
        now = self._state()
        for name, state in now.items():
            if self._copied.get(name) != state:
                write_bytes(self._workdir / name, (self._folder / name).read_bytes())
        self._copied, self._time = now, time.monotonic()

    def _state(self) -> dict[str, tuple[int, int]]:
        """Return the size and the time of the last change of each file on the disk."""
        found = {path.name: path.stat() for path in self._folder.iterdir()}
        return {name: (each.st_size, each.st_mtime_ns) for name, each in found.items()}
