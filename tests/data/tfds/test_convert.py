"""`occinv data convert`: the same records in another format, whole or not at all."""

import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from imagenet_tars import largest_file

from occinv.cli import main
from occinv.data.open_source import open_source
from occinv.data.tfds import convert as converting
from occinv.data.tfds.convert import convert
from occinv.schema import UserError

VERSION = "imagenet2012/5.1.0"


@pytest.fixture
def source(imagenet):
    return imagenet / "tfrecord" / VERSION


def records(folder):
    """Every record of each split, as encoded bytes and features."""
    builder = tfds.builder("imagenet2012", data_dir=folder, try_gcs=False)
    skip = {"image": tfds.decode.SkipDecoding()}
    return {
        split: list(builder.as_data_source(split, decoders=skip)) for split in builder.info.splits
    }


def test_it_is_what_would_have_been_prepared(imagenet, source, tmp_path, capsys):
    open_source("tfds:imagenet2012", train=True, data_dir=str(imagenet / "tfrecord"))
    assert list(source.glob("occinv-*.npz"))  # notes, of places in TFRecord files
    assert main(["data", "convert", str(source), str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / VERSION)
    ours, theirs = tmp_path / VERSION, imagenet / "array_record" / VERSION
    names = {path.name for path in theirs.iterdir() if not path.name.startswith("occinv-")}
    assert {path.name for path in ours.iterdir()} == names
    assert records(tmp_path) == records(imagenet / "array_record")
    given = {f.name: f.read_bytes() for f in (ours, theirs)[0].glob("*.array_record-*")}
    assert len(given) == 6
    opened = [
        open_source("tfds:imagenet2012", train=True, data_dir=str(folder))
        for folder in (tmp_path, imagenet / "tfrecord")
    ]
    assert opened[0].names == opened[1].names
    np.testing.assert_array_equal(opened[0].labels, opened[1].labels)


def test_what_was_stopped_looks_unfinished_and_goes_on(source, tmp_path, monkeypatch):
    class Killed(BaseException):
        """No `except Exception` sees it, nor does it leave time to tidy up."""

    done = []

    class Writer(converting.ArrayRecordWriter):
        def close(self):
            if len(done) == 4:
                raise Killed
            done.append(self)
            super().close()

    monkeypatch.setattr(converting, "_WRITERS", 1)
    with monkeypatch.context() as patch:
        patch.setattr(converting, "ArrayRecordWriter", Writer)
        with pytest.raises(Killed):
            list(convert(str(source), str(tmp_path)))
    assert not (tmp_path / VERSION).exists()
    with pytest.raises(UserError, match="is not prepared"):
        open_source("tfds:imagenet2012", train=True, data_dir=str(tmp_path))
    *written, target = convert(str(source), str(tmp_path))
    assert len(written) == 2 and target == str(tmp_path / VERSION)
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name or "conv" in path.name]
    assert len(records(tmp_path)["train"]) == 14


def test_what_was_begun_from_another_source_is_not_mixed(source, tmp_path):
    begun = tmp_path / f"{VERSION}.converting"
    begun.mkdir(parents=True)
    (begun / "dataset_info.json").write_text("{}")
    (begun / "imagenet2012-train.array_record-00000-of-00003").write_bytes(b"of another")
    assert len(list(convert(str(source), str(tmp_path)))) == 7
    assert len(records(tmp_path)["train"]) == 14


def test_a_damaged_source_gives_nothing(source, tmp_path):
    copied = shutil.copytree(source, tmp_path / "copied")
    file = copied / "imagenet2012-train.tfrecord-00002-of-00003"
    whole = file.read_bytes()
    (length,) = np.frombuffer(whole[:8], "<u8")
    flipped = bytearray(whole)
    flipped[40] ^= 4
    for content in (bytes(flipped), whole[:-1], whole[: length + 16]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"is damaged: .*{file.name}"):
            list(convert(str(copied), str(tmp_path / "tfds")))
        assert not (tmp_path / "tfds" / VERSION).exists()


@pytest.mark.parametrize("size", [1000, 7000])  # less than dataset_info.json, than records
def test_a_full_disk_is_said_and_the_rest_comes_later(source, tmp_path, size):
    with largest_file(size), pytest.raises(UserError, match=r"cannot be written: .*File too large"):
        list(convert(str(source), str(tmp_path)))
    assert not (tmp_path / VERSION).exists()
    assert list(convert(str(source), str(tmp_path)))[-1] == str(tmp_path / VERSION)
    assert len(records(tmp_path)["train"]) == 14


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_what_is_no_data_set(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["data", "convert", str(tmp_path / folder), str(tmp_path / "out")]) == 2
    assert f"{folder}' is not a prepared data set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_need_not_be_converted(imagenet, source, tmp_path):
    already = str(imagenet / "array_record" / VERSION)
    with pytest.raises(UserError, match="has the format array_record, expected tfrecord"):
        list(convert(already, str(tmp_path)))
    with pytest.raises(UserError, match="gs://bucket is a bucket, expected a folder on a disk"):
        list(convert(str(source), "gs://bucket"))
    with pytest.raises(UserError, match=r"5\.1\.0 exists already"):
        list(convert(str(source), str(imagenet / "array_record")))
