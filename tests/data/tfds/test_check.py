"""`occinv data check`: what it finds, and what it calls damage."""

import logging
import shutil

import numpy as np
import pytest
from imagenet_tars import CLASSES
from PIL import Image

from occinv.cli import main
from occinv.data.open_source import open_source
from occinv.data.tfds.check import TILE
from occinv.data.tfds.prepared import FORMATS

EXPECT = ["--expect", "train=14,validation=8"]


@pytest.fixture(params=FORMATS)
def data_dir(imagenet, request, tmp_path):
    """A copy in one format, to be damaged."""
    return shutil.copytree(imagenet / request.param, tmp_path / "tfds")


def check(data_dir, *more):
    return main(["data", "check", "imagenet2012", "--data-dir", str(data_dir), *more])


def test_what_is_whole(data_dir, capsys):
    assert check(data_dir, *EXPECT) == 0
    said = capsys.readouterr().out
    for split, count, most in (("train", 14, 4), ("validation", 8, 2)):
        sheet = data_dir / f"imagenet2012/5.1.0/occinv-{split}-classes.png"
        assert f"tfds:imagenet2012:{split}: {count} images, every record is whole" in said
        assert f"4 of 1000 classes, {most - (split == 'train')} to {most} images each" in said
        assert f"one decoded image of each: {sheet}" in said
        with Image.open(sheet) as opened:
            tiles = np.asarray(opened).reshape(2, TILE, 2, TILE, 3).swapaxes(1, 2)
        source = open_source("tfds:imagenet2012", train=split == "train", data_dir=str(data_dir))
        for wnid, tile in zip(sorted(CLASSES), tiles.reshape(4, TILE, TILE, 3), strict=True):
            first = source.labels.tolist().index(source.classes.index(wnid))
            image = Image.fromarray(np.asarray(source.read(first).image))
            middle = np.asarray(image.crop((4, 0, 44, 40)).resize((TILE, TILE)))
            assert np.abs(tile - middle.astype(float)).mean() < 3  # resized by another filter


def test_every_record_is_read_once(data_dir, capsys, caplog):
    caplog.set_level(logging.INFO, "occinv.data")
    for path in data_dir.rglob("*.npz"):
        path.unlink()
    for _ in range(2):
        caplog.clear()
        assert check(data_dir, *EXPECT) == 0
        assert caplog.text.count("train: reading every record once") == 1


def test_the_published_counts_are_expected(data_dir, capsys):
    assert check(data_dir) == 2
    said = capsys.readouterr()
    assert "tfds:imagenet2012:validation: 8 images" in said.out  # all is looked at first
    assert (
        "imagenet2012: train has 14 images, expected 1,281,167, validation has 8 images, "
        "expected 50,000. Pass --expect to expect other numbers."
    ) in said.err


def test_one_count_may_be_given(data_dir, capsys):
    assert check(data_dir, "--expect", "train=14") == 0
    assert check(data_dir, "--expect", "train=13") == 2
    assert "train has 14 images, expected 13" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tarin=14", "has no split 'tarin' (did you mean 'train'?)"),
        ("train", "--expect 'train', expected SPLIT=COUNT,... such as train=1281167"),
        ("train=many", "--expect 'train=many', expected SPLIT=COUNT,... such as"),
    ],
)
def test_counts_that_cannot_be(data_dir, given, message, capsys):
    assert check(data_dir, "--expect", given) == 2
    assert message in capsys.readouterr().err


def test_a_flipped_bit_is_found_though_all_was_well_before(data_dir, capsys):
    assert check(data_dir, *EXPECT) == 0
    file = next(data_dir.rglob("*validation.*-00002-of-00003"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert check(data_dir, *EXPECT) == 2
    assert f"{file} is damaged at record " in capsys.readouterr().err


def test_an_image_that_is_none_is_named(tmp_path, capsys):
    from imagenet_tars import encoded, write_tars

    files = {"n01443537_0.JPEG": encoded(0), "n02123045_0.JPEG": encoded(1)[:200]}
    tars = write_tars(tmp_path / "tars", files, {"ILSVRC2012_val_00000001.JPEG": encoded(2)})
    command = ["data", "prepare", "imagenet2012", "--manual-dir", str(tars)]
    assert main([*command, "--data-dir", str(tmp_path / "tfds"), "--expect", "train=2"]) == 2
    said = capsys.readouterr().err
    assert "record 0 of tfds:imagenet2012:train" in said or "record 1 of tfds" in said


def test_nothing_to_check(tmp_path, capsys):
    assert check(tmp_path) == 2
    assert "occinv data prepare imagenet2012 --manual-dir DIR" in capsys.readouterr().err
