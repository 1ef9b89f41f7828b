"""A workdir in a bucket, of which an emulator of Google Cloud Storage holds the objects."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax
import numpy as np
import pytest
from gcs_emulator import Emulator, serve
from tiny_runs import (
    Crash,
    assert_same_end,
    at_step,
    crash,
    losses,
    overrides,
    run,
    tensorboard,
    toy_config,
)

from occinv import cli
from occinv.paths import as_path, files_in
from occinv.schema import UserError
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.train.disk import RunFailed
from occinv.train.file_writer import file_writer
from occinv.train.lock import LOCK
from occinv.train.manifest import COMMIT
from occinv.train.writers import read_scalars

pytestmark = pytest.mark.usefixtures("compiled")

FIELDS = ("train.log_every.steps=1", "train.checkpoint_every.steps=2", "train.keep=2")


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    """The emulator, to which the libraries of this process are connected."""
    with serve() as server, pytest.MonkeyPatch.context() as patched:
        patched.setenv("STORAGE_EMULATOR_HOST", server.address)
        patched.setenv("TENSORSTORE_GCS_HTTP_URL", server.address)
        patched.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "of no importance")
        patched.setenv("NO_GCE_CHECK", "true")
        patched.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patched.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
        yield server


@pytest.fixture
def bucket(server: Emulator) -> Iterator[Path]:
    """`gs://bucket/runs`, which is empty."""
    server.objects.clear()
    yield as_path("gs://bucket/runs")
    server.refuse = ()


@pytest.fixture(scope="module")
def arguments(images: Path) -> list[str]:
    """`--config …` of eight steps of Toy, logged at every step and saved at every second."""
    return ["--config", f"{toy_config(images.parent)}:{images}", *overrides(*FIELDS)]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the run on a disk that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(arguments, workdir)
    return workdir


def test_a_run_in_a_bucket_crashes_and_ends_like_one_on_a_disk(
    arguments: list[str], whole: Path, bucket: Path, server: Emulator
) -> None:
    for step in (1, 5):
        with pytest.raises(Crash):
            run(arguments, bucket, watch=at_step(step, crash))
    assert run(arguments, bucket).step == 8
    assert_same_end(bucket, whole)
    assert tensorboard(bucket) == tensorboard(whole) == losses(whole)
    on_disk = {path.name for path in whole.iterdir()}
    assert {path.name for path in bucket.iterdir()} >= on_disk - {"profile"}
    with Checkpoints(bucket / files.CHECKPOINTS, read_only=True) as checkpoints:
        assert checkpoints.steps() == [6, 8]
    assert not [name for name in server.objects if "tmp" in name or "gs:" in name]
    assert not Path("gs:").exists()
