"""Damaged data end in an error that names the image, or in a count: never in fewer images."""

import collections
import gc
import io
import logging
import re
import shutil
import time
import weakref

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from occinv.data.embedded import photos
from occinv.data.folder import open_folder
from occinv.data.loader import EvalLoader, LoaderSpec, TrainLoader
from occinv.data.open_source import open_source
from occinv.data.source import DecodeError
from occinv.schema import UserError

SIZE = 16


def noise(height, width):
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)


def encode(image, kind="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photographs(count):
    """JPEGs of 64 x 64 pixels, of all photographs in turn."""
    tiles = photos(True, 64).images
    return [encode(Image.fromarray(tiles[i * 7 % len(tiles)]), quality=85) for i in range(count)]


def flipped(encoded, rng):
    """With one bit changed."""
    damaged = bytearray(encoded)
    damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
    return bytes(damaged)


def train_loader(source, **options):
    options = {"batch_size": 8, "num_threads": 2} | options
    return TrainLoader(source, LoaderSpec(image_size=SIZE, **options))


def eval_loader(source, **options):
    return EvalLoader(source, LoaderSpec(batch_size=8, image_size=SIZE, num_threads=2, **options))


def skipped(caplog):
    """The names of the images that the log says were skipped, each logged once; clears the log."""
    names = [r.args[2].name for r in caplog.records if r.message.startswith("skipped")]
    assert len(set(names)) == len(names)
    caplog.clear()
    return set(names)


def test_odd_images_are_images(tmp_path):
    odd = {
        "one_pixel.JPEG": encode(Image.fromarray(noise(1, 1))),
        "wide.JPEG": encode(Image.fromarray(noise(20, 20_000))),
        "tall.JPEG": encode(Image.fromarray(noise(20_000, 3))),
        "cmyk.JPEG": encode(Image.fromarray(noise(30, 40)).convert("CMYK")),  # ImageNet has some
        "gray.JPEG": encode(Image.fromarray(noise(30, 40)).convert("L")),
        "png.JPEG": encode(Image.fromarray(noise(30, 40)), "PNG"),  # ImageNet has one
        "alpha.PNG": encode(Image.fromarray(noise(30, 40)).convert("RGBA"), "PNG"),
    }
    for name, encoded in odd.items():
        (tmp_path / name).write_bytes(encoded)
    source = open_folder(str(tmp_path), train=True)
    batch = train_loader(source, batch_size=7 * 20).batch(0)
    assert np.bincount(batch.index).tolist() == [20] * 7 and batch.weight.all()
    (whole,) = eval_loader(source).batches()
    assert whole.weight.tolist() == [1] * 7 + [0]
    one = source.names.index("one_pixel.JPEG")
    assert (whole.image[one] == whole.image[one, 0, 0]).all()


@pytest.mark.parametrize("loader", [train_loader, eval_loader])
def test_a_truncated_image_is_named_or_counted(loader, tmp_path, caplog):
    for number, encoded in enumerate(photographs(12)):
        (tmp_path / f"{number:02}.jpg").write_bytes(encoded[:900] if number == 5 else encoded)
    source = open_folder(str(tmp_path), train=True)

    def batches(**options):
        made = loader(source, **options)
        steps = (0, 3) if loader is train_loader else ()  # two epochs
        return list(made.batches(*steps))

    with pytest.raises(UserError, match=rf"image 5, {tmp_path}/05\.jpg: .*[Pp]remature end"):
        batches()
    with caplog.at_level(logging.WARNING, logger="occinv.data"):
        seen = batches(max_corrupt=1)
    assert caplog.text.count("skipped (1 of at most 1)") == 1
    assert skipped(caplog) == {f"{tmp_path}/05.jpg"}
    weights = np.concatenate([batch.weight for batch in seen])
    assert weights.sum() == (24 if loader is train_loader else 11)
    assert 5 not in np.concatenate([batch.index for batch in seen])


def test_flipped_bits_in_jpegs_are_counted_or_beyond_notice(tmp_path, caplog):
    rng = np.random.default_rng(1)
    wholes = photographs(400)
    for number, encoded in enumerate(wholes):
        (tmp_path / f"{number:03}.jpg").write_bytes(flipped(encoded, rng))
    source = open_folder(str(tmp_path), train=True)
    loader = eval_loader(source, max_corrupt=400)
    seen = np.concatenate([batch.index[batch.weight == 1] for batch in loader.batches()])
    corrupt = skipped(caplog)
    assert len(set(seen)) == len(seen) == 400 - len(corrupt)
    outcomes = collections.Counter()
    for number in range(400):
        try:
            pixels = source.read(number).image
        except DecodeError as error:
            assert error.name == f"{tmp_path}/{number:03}.jpg" and error.name in corrupt
            outcomes["error"] += 1
        else:
            assert number in seen and pixels.dtype == np.uint8
            outcomes["seen"] += 1
    # Most flips give another picture, which no decoder can tell from a sound one: see docs/data.md.
    assert outcomes["error"] > 5 and outcomes["seen"] > 200
    caplog.clear()
    # Training replaces the damaged: an epoch is as long as it says.
    training = train_loader(source, max_corrupt=400)
    epoch = np.concatenate([batch.index for batch in training.batches(0, 50)])
    assert len(epoch) == 400 and set(epoch) == set(seen)
    assert skipped(caplog) == corrupt


def test_runs_of_damage_in_jpegs_are_counted(tmp_path, caplog):
    rng = np.random.default_rng(2)
    for number, encoded in enumerate(photographs(100)):
        start = rng.integers(len(encoded) - 64)
        junk = [b"", bytes(64), rng.bytes(64)][number % 3]
        (tmp_path / f"{number:03}.jpg").write_bytes(encoded[:start] + junk + encoded[start + 64 :])
    source = open_folder(str(tmp_path), train=True)
    loader = eval_loader(source, max_corrupt=100)
    read = sum(batch.weight.sum() for batch in loader.batches())
    corrupt = skipped(caplog)
    assert read == 100 - len(corrupt) and len(corrupt) > 10
    with pytest.raises(UserError, match=r"3 images cannot be read: .*data\.max_corrupt=2"):
        list(eval_loader(source, max_corrupt=2).batches())


class OccinvRecords(tfds.core.GeneratorBasedBuilder):
    """Forty photographs in records."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, encoded in enumerate(photographs(40)):
            yield number, {"image": io.BytesIO(encoded)}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    tfds.disable_progress_bar()
    OccinvRecords(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_flipped_bits_in_records_are_found_by_their_checksums(records, tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(records, folder)
    (shard,) = folder.rglob("*.array_record*")
    sound = shard.read_bytes()
    source = open_source("tfds:occinv_records", train=True, data_dir=str(records))
    wanted = [source.read(number).image for number in range(40)]
    rng = np.random.default_rng(3)
    outcomes = collections.Counter()
    for _ in range(60):
        shard.write_bytes(flipped(sound, rng))
        errors = 0
        try:
            damaged = open_source("tfds:occinv_records", train=True, data_dir=str(folder))
            assert len(damaged) == 40
        except UserError:
            outcomes["not opened"] += 1
            continue
        for number in range(40):
            try:
                np.testing.assert_array_equal(damaged.read(number).image, wanted[number])
            except DecodeError as error:
                assert re.match(rf"cannot read image {number}, record {number} of ", str(error))
                errors += 1
        outcomes["error" if errors else "padding"] += 1
    assert outcomes["error"] > 20


def test_the_loader_holds_no_more_batches_than_documented(monkeypatch):
    """docs/data.md: at most max(2, num_threads) + 2 batches; without threads two."""
    alive, most, made = set(), [], 0
    empty = TrainLoader._empty

    def counted(self):
        nonlocal made
        batch = empty(self)
        number = made = made + 1
        alive.add(number)
        most.append(len(alive))
        weakref.finalize(batch.image, alive.discard, number)
        return batch

    monkeypatch.setattr(TrainLoader, "_empty", counted)
    for num_threads in (0, 1, 4):
        alive.clear()
        most.clear()
        spec = LoaderSpec(batch_size=4, image_size=8, num_threads=num_threads)
        loader = TrainLoader(photos(True), spec)
        batches = loader.batches(0, 10**6)
        for number in range(200):
            batch = next(batches)
            if number % 50 == 0:
                time.sleep(0.05)  # a slow step: the threads run ahead as far as they can
        assert batch.image.shape == (4, 8, 8, 3)
        batches.close()
        del batch, batches
        bound = max(2, num_threads) + 2 if num_threads else 2
        assert max(1, num_threads) < max(most) <= bound
        deadline = time.monotonic() + 5
        while alive and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)  # the last batch may still be in the making
        assert not alive
