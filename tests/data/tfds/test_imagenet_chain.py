"""The whole way of ImageNet: archives, records, a training that is killed, and its end."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from tiny_runs import losses, overrides, start, toy_config

from occinv.cli import main
from occinv.train import workdir as files


def test_archives_records_training_killed_and_resumed(
    imagenet: Path, tars: Path, tmp_path: Path
) -> None:
    """On TFRecord; what it has to come to is what a run on ArrayRecord that nobody killed does."""
    data_dir, workdir, undisturbed = (tmp_path / name for name in ("tfds", "run", "undisturbed"))
    prepared = ["data", "prepare", "imagenet2012", "--manual-dir", str(tars), "--format"]
    expected = ["--data-dir", str(data_dir), "--expect", "train=14,validation=8"]
    assert main([*prepared, "tfrecord", *expected]) == 0

    fields = overrides(
        "data.source=tfds:imagenet2012",
        "data.classes=n01443537,n02123045,n02105855",  # 10 images
        "train.duration.steps=150",
        "train.log_every.steps=1",
        "train.checkpoint_every.steps=25",
    )
    train = ["train", "--config", f"{toy_config(tmp_path)}:nowhere", *fields]
    command = [*train, *overrides(f"data.data_dir={data_dir}"), "--workdir", str(workdir)]
    process = start(command)
    for _ in range(6000):
        if (workdir / files.CHECKPOINTS / "25").exists():
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGKILL
    assert "tfds:imagenet2012:train: 14 images, read as tfrecord" in said
    assert 25 <= max(losses(workdir)) < 150

    assert main(command) == 0
    other = overrides(f"data.data_dir={imagenet / 'array_record'}")
    assert main([*train, *other, "--workdir", str(undisturbed)]) == 0
    assert losses(workdir) == pytest.approx(losses(undisturbed), rel=1e-5)
    lines = (workdir / files.IMAGES).read_text().splitlines()
    assert len(lines) == 11 and "n01739381" not in "".join(lines)
