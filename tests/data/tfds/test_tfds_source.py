import io
import json
import shlex
import socket
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from occinv.cli import main
from occinv.data.loader import EvalLoader, LoaderSpec
from occinv.data.open_source import open_source
from occinv.data.selections import per_class
from occinv.schema import UserError


def pixels(split, i):
    return np.random.default_rng([len(split), i]).integers(0, 256, (20, 30, 3), dtype=np.uint8)


class OccinvTiny(tfds.core.GeneratorBasedBuilder):
    """Ten train and four test images; given as encoded bytes, so that no TensorFlow is needed."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {s: self._generate_examples(s, n) for s, n in (("train", 10), ("test", 4))}

    def _generate_examples(self, split, count):
        for i in range(count):
            stream = io.BytesIO()
            Image.fromarray(pixels(split, i)).save(stream, "PNG")
            if split == "test" and i == 3:
                stream.truncate(200)
            stream.seek(0)
            yield i, {"image": stream, "label": i % 2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    OccinvTiny(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_prepared_data_set_is_read(data_dir):
    source = open_source("tfds:occinv_tiny", train=True, data_dir=data_dir)
    assert source.name == "tfds:occinv_tiny:train" and source.classes == ("cat", "dog")
    assert len(source) == 10
    wanted = {pixels("train", i).tobytes(): i % 2 for i in range(10)}
    for index in range(10):
        sample = source.read(index)
        assert sample.index == index and sample.label == source.labels[index]
        assert wanted.pop(np.asarray(sample.image).tobytes()) == sample.label
    assert not wanted
    assert source.labels.dtype == np.int32
    assert len(per_class(source, 2)) == 4
    assert "tensorflow" not in sys.modules


def test_splits(data_dir):
    def count(spec, train=False):
        return len(open_source(f"tfds:{spec}", train=train, data_dir=data_dir))

    assert count("occinv_tiny") == 4  # no validation: test
    assert count("occinv_tiny:train") == 10
    assert count("occinv_tiny:1.0.0:train[:30%]") == 3
    with pytest.raises(UserError, match=r"split 'tarin\[:3\]' \(did you mean 'train'\?\)"):
        count("occinv_tiny:tarin[:3]")


def test_a_corrupt_record_is_named(data_dir):
    source = open_source("tfds:occinv_tiny:test", train=False, data_dir=data_dir)
    spec = LoaderSpec(batch_size=4, image_size=20, resize_ratio=1.0, num_threads=0)
    loader = EvalLoader(source, spec)
    with pytest.raises(UserError, match=r"record \d of tfds:occinv_tiny:test"):
        loader.batch(0)


def test_what_is_not_prepared_fails_at_once_with_the_command(tmp_path):
    start = time.monotonic()
    for name in ("imagenet2012", "mnist"):
        with pytest.raises(UserError, match=f"{name!r} is not prepared in") as caught:
            open_source(f"tfds:{name}", train=True, data_dir=str(tmp_path))
        manual = " --manual-dir DIR" if name == "imagenet2012" else ""
        command = f"occinv data prepare {name}{manual} --data-dir {tmp_path}"
        assert str(caught.value).endswith(command)
    assert time.monotonic() - start < 10
    assert not list(tmp_path.iterdir())  # nothing written


def test_the_command_of_the_error_prepares(tmp_path, capsys):
    with pytest.raises(UserError, match="Prepare it with") as caught:
        open_source("tfds:occinv_tiny", train=True, data_dir=str(tmp_path))
    program, *arguments = shlex.split(str(caught.value).split("Prepare it with: ")[1])
    assert program == "occinv"
    assert main(arguments) == 0  # here, where tfds knows the data set of this file
    assert "occinv_tiny:train: 10 images, every record is whole" in capsys.readouterr().out
    assert len(open_source("tfds:occinv_tiny", train=True, data_dir=str(tmp_path))) == 10


def test_another_format_is_not_enough(data_dir, tmp_path):
    copied = tmp_path / "occinv_tiny/1.0.0"
    copied.mkdir(parents=True)
    for file in (tfds.core.Path(data_dir) / "occinv_tiny/1.0.0").iterdir():
        name = file.name.replace("array_record", "riegeli")
        (copied / name).write_bytes(file.read_bytes())
    info = copied / "dataset_info.json"
    content = json.loads(info.read_text().replace("array_record", "riegeli"))
    info.write_text(json.dumps(content))
    with pytest.raises(UserError, match="as array_record or tfrecord, only as riegeli, in"):
        open_source("tfds:occinv_tiny", train=True, data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagenett", r"no data set 'imagenett' \(did you mean 'imagenette'\?\)"),
        ("qqqqq", r"no data set 'qqqqq' \(tfds.list_builders\(\) lists them\)"),
        ("imagenette/32px", r"no config '32px' \(did you mean '320px'\?\)"),
        ("mnist:9.9.9", "cannot open 'mnist:9.9.9': .*only: 3"),
        ("kaggle:x", "no data set 'kaggle'"),
    ],
)
def test_unknown_names(tmp_path, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"tfds:{spec}", train=True, data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
