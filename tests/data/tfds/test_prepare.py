"""From ImageNet's archives to records in both formats, through the builder itself."""

import io
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from imagenet_tars import (
    CLASSES,
    CMYK,
    PNG,
    encoded,
    held_out_files,
    largest_file,
    train_files,
    write_tars,
)
from PIL import Image

from occinv.cli import main
from occinv.data.open_source import open_source
from occinv.data.tfds import prepare as preparing
from occinv.data.tfds.prepare import prepare
from occinv.data.tfds.prepared import FORMATS
from occinv.schema import UserError


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_no_tensorflow_was_needed(imagenet):
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("train", [True, False])
def test_every_file_of_the_archives_is_a_record(imagenet, file_format, train):
    source = open_source("tfds:imagenet2012", train=train, data_dir=str(imagenet / file_format))
    files = train_files(3) if train else held_out_files(2)
    assert len(source) == len(files) == (14 if train else 8)
    assert sorted(source.names) == sorted(files)
    assert len(source.classes) == 1000
    for index, name in enumerate(source.names):
        sample = source.read(index)
        assert sample.label == source.labels[index] and sample.index == index
        if train:
            assert source.classes[sample.label] == name[:9]
        if name not in (CMYK, PNG):
            wanted = Image.open(io.BytesIO(files[name]))
            np.testing.assert_array_equal(sample.image, wanted)
    assert set(np.array(source.classes)[source.labels]) == set(CLASSES)


def test_the_images_that_are_no_rgb_jpeg_become_one(imagenet):
    source = open_source("tfds:imagenet2012", train=True, data_dir=str(imagenet / "array_record"))
    for name in (CMYK, PNG):
        record = source._records[source.names.index(name)]
        stored = Image.open(io.BytesIO(record["image"]))
        assert (stored.format, stored.mode) == ("JPEG", "RGB")
        given = Image.open(io.BytesIO(train_files(3)[name])).convert("RGB")
        difference = np.asarray(stored, float) - np.asarray(given, float)
        assert np.abs(difference).mean() < 4


def test_it_is_the_data_set_of_tensorflow_datasets(imagenet):
    """With its description, its version and its module, so that others open it, too."""
    for file_format in FORMATS:
        builder = tfds.builder("imagenet2012", data_dir=imagenet / file_format, try_gcs=False)
        info = builder.info
        assert info.full_name == "imagenet2012/5.1.0"
        written = json.loads((Path(builder.data_path) / "dataset_info.json").read_text())
        assert written["moduleName"].endswith(".imagenet2012_dataset_builder")
        assert "synset" in written["description"] and "Olga" in written["citation"]
        assert info.splits["train"].num_examples == 14
        assert info.file_format.value == file_format


def test_the_command_prepares_once_and_checks(tars, tmp_path, capsys):
    command = ["data", "prepare", "imagenet2012", "--manual-dir", str(tars), "--data-dir"]
    expected = ["--expect", "train=14,validation=8"]
    assert main([*command, str(tmp_path / "new"), *expected]) == 0
    said = capsys.readouterr().out
    assert "imagenet2012:train: 14 images, every record is whole" in said
    assert "4 of 1000 classes, 3 to 4 images each" in said
    assert "no image of n01440764, n01484850" in said and "and 986 more" in said
    files = files_of(tmp_path / "new")
    assert main([*command, str(tmp_path / "new"), *expected]) == 0
    assert files_of(tmp_path / "new") == files
    assert main([*command, str(tmp_path / "new")]) == 2
    assert "train has 14 images, expected 1,281,167" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "new"), "--format", "tfrecord"]) == 2
    assert "exists already, as array_record" in capsys.readouterr().err


def refused(tmp_path, tars, message, **given):
    given = {"name": "imagenet2012", "file_format": "array_record", "manual_dir": str(tars)} | given
    with pytest.raises(UserError, match=message) as caught:
        prepare(data_dir=str(tmp_path / "new"), **given)
    assert "\n" not in str(caught.value)
    found = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    assert not found, "half a data set is left"


def test_mistakes_leave_nothing(tmp_path, tars):
    refused(
        tmp_path, tars, "'tfrecords' is unknown .did you mean 'tfrecord'", file_format="tfrecords"
    )
    refused(
        tmp_path, tars, "no data set 'imagenet2021' .did you mean 'imagenet", name="imagenet2021"
    )
    refused(tmp_path, tars, "no config '32px' .did you mean '320px'", name="imagenette/32px")
    with pytest.raises(UserError, match="gs://bucket is a bucket, expected a folder on a disk"):
        prepare("imagenet2012", "gs://bucket", str(tars), "tfrecord")
    refused(tmp_path, tars, "--manual-dir is missing: the folder of ILSVRC", manual_dir=None)
    refused(tmp_path, tars, "there is no .*ILSVRC2012_img_train.tar", manual_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("train", "held_out", "message"),
    [
        ({"n99999999_0.JPEG": encoded(0)}, {}, "has 'n99999999.tar', expected such as n0144"),
        ({"n01443537_0.JPEG": encoded(0)}, {"cat.JPEG": b""}, "has 'cat.JPEG', expected ILSVRC"),
        (
            {"n01443537_0.JPEG": encoded(0)},
            {"ILSVRC2012_val_00050001.JPEG": b""},
            "expected ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG",
        ),
    ],
)
def test_archives_of_something_else_leave_nothing(tmp_path, train, held_out, message):
    tars = write_tars(tmp_path / "tars", train, held_out)
    refused(tmp_path, tars, message)


def test_a_damaged_archive_leaves_nothing(tmp_path, tars):
    cut = tmp_path / "tars"
    shutil.copytree(tars, cut)
    archive = cut / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:6000])
    refused(tmp_path, cut, "imagenet2012 cannot be prepared in .*: unexpected end of data")


def test_a_full_disk_leaves_nothing(tmp_path, tars, monkeypatch):
    free = types.SimpleNamespace(free=10_000)
    with monkeypatch.context() as patch:
        patch.setattr(preparing.shutil, "disk_usage", lambda _: free)
        refused(tmp_path, tars, "has 0.0 GB free, expected 0.0 or more")

    with largest_file(4000):
        refused(tmp_path, tars, "cannot be prepared in .*File too large")
        refused(tmp_path, tars, "cannot be prepared in .*File too large", file_format="tfrecord")
