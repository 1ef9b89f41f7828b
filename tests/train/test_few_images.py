"""Training on a part of the images: how long an epoch is, and that the part is written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import make_images, overrides, run, toy_config

from occinv import schema
from occinv.config import load_config
from occinv.schema import UserError
from occinv.train import workdir as files
from occinv.train.loop import train
from occinv.train.prepare import Run, prepare


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """`--config …` of two epochs of Toy over 24 images, in batches of eight."""
    images = make_images(tmp_path / "images")
    length = ("train.duration.steps=None", "train.duration.epochs=2")
    return ["--config", f"{toy_config(tmp_path)}:{images}", *overrides(*length)]


def prepared(arguments: list[str], *fields: str) -> Run:
    return prepare(schema.resolve(load_config(arguments[1], [*arguments[2:], *overrides(*fields)])))


@pytest.mark.parametrize("count", [1, 10, 24])
def test_an_epoch_of_few_images_is_one_of_all(arguments: list[str], count: int) -> None:
    assert prepared(arguments, f"data.num_images={count}").assembly.steps == 6


def test_an_epoch_of_few_labels_is_one_of_them(arguments: list[str]) -> None:
    assert prepared(arguments, "data.fraction=0.33").assembly.steps == 2  # 8 of 24 images


def test_one_image_fills_every_batch_in_other_crops(arguments: list[str]) -> None:
    """Where others drop a batch larger than the data and train nothing without a word."""
    loader = prepared(arguments, "data.num_images=1").loader
    batch = loader.batch(0)
    assert len(set(batch.index.tolist())) == 1
    assert (batch.weight == 1).all()
    assert len(np.unique(batch.image.reshape(8, -1), axis=0)) == 8


def test_a_length_without_a_step_is_an_error(arguments: list[str]) -> None:
    for part in ("data.num_images=1", "data.per_class=1"):
        with pytest.raises(UserError, match=r"less than one step of 8 images over (24|2) "):
            prepared(arguments, part, "train.duration.epochs=0.1", "optimizer.warmup.steps=0")


def test_the_part_is_written_down_and_held_to(arguments: list[str], tmp_path: Path) -> None:
    part = ("data.num_images=4", "train.duration.epochs=1")
    run(arguments, tmp_path / "run", *part)
    lines = (tmp_path / "run" / files.IMAGES).read_text().splitlines()
    assert lines[0] == "index\tclass\tfile"
    source = prepared(arguments, *part).loader.source
    paths = [source.parent.names[index] for index in source.indices]
    assert [line.split("\t")[2] for line in lines[1:]] == paths
    for name in ("aa", "ab"):
        Image.new("RGB", (20, 20)).save(tmp_path / "images" / "train" / "dark" / f"{name}.png")
    with pytest.raises(UserError, match=r"since the run began: training: 2 files added \(dark/aa"):
        run(arguments, tmp_path / "run", *part)
    config = schema.resolve(load_config(arguments[1], [*arguments[2:], *overrides(*part)]))
    assert train(config, tmp_path / "run", accept_changed_data=True).step == 3


def test_the_first_image_is_decoded_before_anything_is_written(
    arguments: list[str], tmp_path: Path
) -> None:
    for part in ("val", "train"):
        first = tmp_path / "images" / part / "dark" / "00.png"
        first.write_bytes(b"no image")
        with pytest.raises(
            UserError, match=rf"cannot read image 0, .*{part}/dark/00.png: no image"
        ):
            run(arguments, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        if part == "val":
            first.unlink()


def test_all_images_are_not_written_down(arguments: list[str], tmp_path: Path) -> None:
    run(arguments, tmp_path / "run", "train.duration.epochs=0.5")
    assert not (tmp_path / "run" / files.IMAGES).exists()
