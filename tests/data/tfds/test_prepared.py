"""Two formats, one Batch: whichever is on disk, the batches are the same, and nothing is lost."""

import logging
import pickle
import shutil
import sys
import zipfile

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from imagenet_tars import largest_file

from occinv.data.loader import EvalLoader, LoaderSpec, TrainLoader
from occinv.data.open_source import open_source
from occinv.data.selections import listed, of_classes
from occinv.data.source import DecodeError
from occinv.data.tfds.prepared import FORMATS
from occinv.schema import UserError


def spec(batch_size, **options):
    return LoaderSpec(batch_size=batch_size, image_size=16, num_threads=2, **options)


def opened(folder, split="", train=True):
    return open_source(f"tfds:imagenet2012{split}", train=train, data_dir=str(folder))


@pytest.fixture
def copied(imagenet, tmp_path):
    """The TFRecord data set, to be damaged: its data_dir, and the folder of its files."""
    shutil.copytree(imagenet / "tfrecord", tmp_path / "tfds")
    return tmp_path / "tfds", tmp_path / "tfds/imagenet2012/5.1.0"


def assert_same(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_both_formats_give_the_same_batches(imagenet):
    records, stream = (opened(imagenet / file_format) for file_format in FORMATS)
    train = [TrainLoader(s, spec(4, seed=3)) for s in (records, stream)]
    for step in (0, 3, 1_000_000):
        assert_same(*(loader.batch(step) for loader in train))
    held_out = [opened(imagenet / file_format, train=False) for file_format in FORMATS]
    loaders = [EvalLoader(source, spec(3)) for source in held_out]
    for ours, theirs in zip(*(loader.batches() for loader in loaders), strict=True):
        assert_same(ours, theirs)
    assert ours.weight.tolist() == [1, 1, 0] and ours.index[2] == -1
    for source in (records, stream):
        whole = source.read(0).image.shape
        assert source.read(0, lambda *size: 2).image.shape[:2] == (
            -(-whole[0] // 2),
            -(-whole[1] // 2),
        )


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_an_epoch_is_a_permutation_on_any_number_of_processes(imagenet, file_format, count):
    source = opened(imagenet / file_format)
    alone = TrainLoader(source, spec(4))
    shared = [
        TrainLoader(
            opened(imagenet / file_format), spec(4, process_index=process, process_count=count)
        )
        for process in range(count)
    ]
    seen = []
    batches = zip(*(loader.batches(0, 11) for loader in (alone, *shared)), strict=True)
    for whole, *parts in batches:
        assert_same(whole, jax.tree.map(lambda *rows: np.concatenate(rows), *parts))
        seen += whole.index.tolist()
    epochs = [seen[first : first + 14] for first in (0, 14, 28)]  # 11 batches of 4 hold 3 epochs
    assert [sorted(epoch) for epoch in epochs] == [list(range(14))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    # And from the middle of an epoch on, as after a restart.
    again = TrainLoader(source, spec(4)).batches(5, 11)
    assert [index for batch in again for index in batch.index.tolist()] == seen[20:]


@pytest.mark.parametrize("file_format", FORMATS)
def test_held_out_images_come_once_from_any_number_of_processes(imagenet, file_format):
    seen = []
    for process in range(2):
        source = opened(imagenet / file_format, train=False)
        loader = EvalLoader(source, spec(6, process_index=process, process_count=2))
        for batch in loader.batches():
            assert ((batch.weight == 1) == (batch.index >= 0)).all()
            seen += batch.index[batch.weight == 1].tolist()
    assert sorted(seen) == list(range(8))


@pytest.mark.parametrize(
    "slices", ["train[4:9]", "train[50%:]+validation[:3]", "train[6:]+train[:2]"]
)
def test_slices_have_their_own_records_labels_and_names(imagenet, slices):
    sources = [opened(imagenet / file_format, f":{slices}") for file_format in FORMATS]
    whole = [opened(imagenet / FORMATS[0], f":{split}") for split in ("train", "validation")]
    expected = {
        "train[4:9]": [(0, i) for i in range(4, 9)],
        "train[50%:]+validation[:3]": [(0, i) for i in range(7, 14)] + [(1, i) for i in range(3)],
        "train[6:]+train[:2]": [(0, i) for i in [*range(6, 14), 0, 1]],
    }[slices]
    for source in sources:
        assert len(source) == len(expected)
        for index, (split, place) in enumerate(expected):
            ours, theirs = source.read(index), whole[split].read(place)
            assert ours.label == source.labels[index] == theirs.label
            assert source.names[index] == whole[split].names[place]
            np.testing.assert_array_equal(ours.image, theirs.image)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_slice_of_nothing(imagenet, file_format):
    with pytest.raises(UserError, match=r"train\[:0\] is empty"):
        opened(imagenet / file_format, ":train[:0]")
    with pytest.raises(UserError, match=r"cannot open split 'train\[:x\]'"):
        opened(imagenet / file_format, ":train[:x]")


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_pickled_source_reads_the_same(imagenet, file_format):
    """Worker processes get it so, also between `prefetch` and `read`."""
    source = opened(imagenet / file_format)
    if file_format == "tfrecord":
        source._records.shards.is_remote = True
        source.prefetch([3])
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read(3).image, source.read(3).image)
    np.testing.assert_array_equal(copy.labels, source.labels)


def test_some_classes_of_it(imagenet):
    source = open_source(
        "tfds:imagenet2012", train=True, data_dir=str(imagenet / "tfrecord"),
        classes="n02123045,n01443537",
    )  # fmt: skip
    assert source.classes == ("n01443537", "n02123045") and len(source) == 6
    for index, name in enumerate(source.names):
        assert source.classes[source.read(index).label] == name[:9]


def test_a_list_of_names_of_its_files(imagenet, tmp_path):
    """As others publish them, of labeled ImageNet: in any order, with or without the folder."""
    source = opened(imagenet / "array_record")
    names = [name for name in source.names if name.startswith("n01443537")]
    lines = [names[2], f"n01443537/{names[0]}", names[1]]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    part = listed(source, str(tmp_path / "list.txt"))
    assert part.names == names and set(part.labels) == {source.classes.index("n01443537")}


def test_a_bucket_is_told_what_comes_next(imagenet):
    source = opened(imagenet / "tfrecord")
    part = of_classes(source, "n02123045,n01443537")
    asked = source._records._fetched
    part.prefetch([1, 2])
    assert not asked  # the files are on a disk
    source._records.shards.is_remote = True
    part.prefetch([1, 2])
    assert sorted(asked) == sorted(part.indices[[1, 2]])
    for index in (2, 1, 0):
        theirs = opened(imagenet / "array_record").read(part.indices[index])
        np.testing.assert_array_equal(part.read(index).image, theirs.image)
    assert not asked


def test_the_log_says_which_format_is_read(imagenet, copied, caplog):
    caplog.set_level(logging.INFO, "occinv.data")
    opened(imagenet / "array_record")
    assert "tfds:imagenet2012:train: 14 images, read as array_record" in caplog.text
    opened(copied[0])
    assert "tfds:imagenet2012:train: 14 images, read as tfrecord" in caplog.text


@pytest.mark.parametrize("file_format", FORMATS)
def test_records_are_read_through_once(imagenet, tmp_path, file_format, caplog):
    caplog.set_level(logging.INFO, "occinv.data")
    shutil.copytree(imagenet / file_format, tmp_path / "tfds")
    kept = tmp_path / f"tfds/imagenet2012/5.1.0/occinv-train-{file_format}.npz"
    kept.unlink(missing_ok=True)

    def passes():
        caplog.clear()
        labels = opened(tmp_path / "tfds").labels
        return labels.tolist(), caplog.text.count("imagenet2012:train: reading every record once")

    first = passes()
    assert first[1] == 1 and kept.is_file()
    assert passes() == (first[0], 0)
    kept.write_bytes(kept.read_bytes()[:-30])  # by a disk that was full
    assert passes() == first
    with zipfile.ZipFile(kept) as whole:
        assert whole.testzip() is None
    kept.write_bytes(b"")
    assert passes() == first
    assert passes() == (first[0], 0)
    assert not list(kept.parent.glob("*.npz-*"))


def test_another_data_set_in_its_place_is_read_anew(copied, tars):
    from occinv.data.tfds.prepare import prepare

    before = opened(copied[0]).labels
    notes = {path.name: path.read_bytes() for path in copied[1].glob("*.npz")}
    shutil.rmtree(copied[1])
    prepare("imagenet2012", str(copied[0]), str(tars), "tfrecord")  # in one file, not three
    for name, content in notes.items():
        (copied[1] / name).write_bytes(content)
    source = opened(copied[0])
    assert [source.read(i).label for i in range(14)] == source.labels.tolist() == before.tolist()


def test_where_nothing_can_be_kept_a_run_goes_on(copied, caplog):
    for path in copied[1].glob("*.npz"):
        path.unlink()
    with largest_file(50):
        assert len(opened(copied[0]).labels) == 14
    assert "train-tfrecord.npz cannot be written, so each run reads all records" in caplog.text
    assert not list(copied[1].glob("*.npz*"))


def test_of_two_formats_array_record_is_read(imagenet, copied, caplog):
    caplog.set_level(logging.INFO, "occinv.data")
    for path in (imagenet / "array_record/imagenet2012/5.1.0").glob("*.array_record-*"):
        shutil.copy(path, copied[1])
    source = opened(copied[0])
    assert "14 images, read as array_record" in caplog.text
    assert source.read(3).label == source.labels[3]


def test_a_record_that_is_damaged_later_is_named(copied):
    opened(copied[0])  # which notes where the records are
    file = copied[1] / "imagenet2012-train.tfrecord-00001-of-00003"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    source = opened(copied[0])
    batch = EvalLoader(source, spec(14, max_corrupt=1)).batch(0)
    assert batch.weight.sum() == 13
    bad = int(np.flatnonzero(batch.weight == 0)[0])
    with pytest.raises(DecodeError, match=f"image {bad}, record {bad} of .*checksum.*{file.name}"):
        source.read(bad)


@pytest.mark.parametrize("file_format", FORMATS)
def test_damage_is_found_when_it_is_opened(imagenet, tmp_path, file_format):
    shutil.copytree(imagenet / file_format, tmp_path / "tfds")
    folder = tmp_path / "tfds/imagenet2012/5.1.0"
    for path in folder.glob("*.npz"):
        path.unlink()
    file = folder / f"imagenet2012-train.{file_format}-00001-of-00003"
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    lengths = tfds.builder_from_directory(folder).info.splits["train"].shard_lengths
    longer = lengths.index(max(lengths))
    assert lengths[1] < lengths[longer]
    another = (folder / f"imagenet2012-train.{file_format}-0000{longer}-of-00003").read_bytes()
    for content in (bytes(flipped), whole[:-5], b"", another):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"{file.name} is damaged at record \\d") as caught:
            _ = opened(tmp_path / "tfds").labels
        assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=f"imagenet2012:train lacks a file: .*{file.name}"):
        opened(tmp_path / "tfds")
    assert len(opened(tmp_path / "tfds", train=False)) == 8  # which needs other files


def test_a_bucket_without_what_reads_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match="run `pip install gcsfs`") as caught:
        opened("gs://bucket/tfds")
    assert "\n" not in str(caught.value)
