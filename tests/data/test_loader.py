import logging
import threading
import time

import jax
import numpy as np
import pytest

from occinv.data.embedded import photos
from occinv.data.loader import EvalLoader, LoaderSpec, TrainLoader, sample_rng
from occinv.data.order import sample_indices
from occinv.data.source import DecodeError, Sample
from occinv.schema import UserError


class Numbered:
    """Images whose every pixel is their number; some of them cannot be read."""

    name = "numbered"
    classes = tuple("abc")

    def __init__(self, count=10, size=4, corrupt=()):
        self.count, self.size, self.corrupt = count, size, corrupt
        self.labels = (np.arange(count) % 3).astype(np.int32)

    def __len__(self):
        return self.count

    def prefetch(self, indices):
        self.announced = list(indices)

    def read(self, index, reduction=None):
        if index in self.corrupt:
            raise DecodeError(f"file{index}", index, "it is cut off")
        image = np.full((self.size, self.size, 3), index, np.uint8)
        return Sample(image, int(self.labels[index]), index)


def train_loader(source=None, **options):
    options = {"batch_size": 8, "image_size": 4, "num_threads": 0} | options
    return TrainLoader(source or Numbered(), LoaderSpec(**options))


def eval_loader(source, **options):
    return EvalLoader(source, LoaderSpec(image_size=4, **options))


def assert_equal(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def joined(batches):
    return jax.tree.map(lambda *rows: np.concatenate(rows), *batches)


def test_a_batch_is_what_the_order_says():
    loader = train_loader()
    for step in (0, 3, 10**6):
        batch = loader.batch(step)
        np.testing.assert_array_equal(batch.index, sample_indices(0, 10, step * 8, 8))
        np.testing.assert_array_equal(batch.label, batch.index % 3)
        np.testing.assert_array_equal(batch.image[:, 2, 1, 0], batch.index)
        assert batch.image.shape == (8, 4, 4, 3) and batch.image.dtype == np.uint8
        assert batch.label.dtype == batch.index.dtype == np.int32
        assert batch.weight.dtype == np.float32 and batch.weight.tolist() == [1.0] * 8


def test_each_image_comes_once_an_epoch_though_the_batch_does_not_divide_it():
    index = joined(train_loader().batches(0, 25)).index.reshape(20, 10)
    for epoch in index:
        assert sorted(epoch) == list(range(10))


def test_the_source_is_told_what_comes_next():
    source = Numbered(10)
    loader = train_loader(source, batch_size=4, process_index=1, process_count=2)
    assert loader.batch(3).index.tolist() == source.announced
    validation = eval_loader(source, batch_size=4)
    assert validation.batch(2).index.tolist() == [*source.announced, -1, -1] == [8, 9, -1, -1]


def test_a_batch_may_be_larger_than_the_data():
    batch = train_loader(batch_size=25).batch(0)
    assert sorted(np.bincount(batch.index)) == [2] * 5 + [3] * 5


@pytest.mark.parametrize("process_count", [2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(process_count):
    source = photos(True)
    whole = train_loader(source, image_size=32)
    parts = [
        train_loader(source, image_size=32, process_index=i, process_count=process_count)
        for i in range(process_count)
    ]
    for step in (0, 7, 10**6):
        assert_equal(whole.batch(step), joined([part.batch(step) for part in parts]))


def test_crops_depend_on_seed_and_sample_and_nothing_else():
    source = photos(True)
    batch = train_loader(source, image_size=32, batch_size=16).batch(2)
    # The same samples, cut into batches of another size.
    smaller = train_loader(source, image_size=32, batch_size=4)
    assert_equal(batch, joined([smaller.batch(step) for step in range(8, 12)]))
    other = train_loader(source, image_size=32, batch_size=16, seed=1).batch(2)
    assert not np.array_equal(batch.image, other.image)
    # One image in two epochs is cropped in two ways.
    one = Numbered(count=1, size=8)
    one.read = lambda index, reduction: Sample(source.images[200], 0, 0)
    first, second = train_loader(one, batch_size=2, image_size=32).batch(0).image
    assert not np.array_equal(first, second)


def test_the_draws_of_a_sample_stay_what_they_are():
    # A run that is resumed after an upgrade goes on with the same crops.
    for seed, number in ((0, 0), (7, 5), (2**63 - 1, 10**12)):
        philox = np.random.Philox(key=[seed, 0], counter=[0, number, 0, 0])
        wanted = np.random.Generator(philox).random(3)
        np.testing.assert_array_equal(sample_rng(seed, number).random(3), wanted)


def test_no_crop_and_no_flip_is_the_identity():
    source = photos(False)
    loader = train_loader(source, image_size=32, crop_scale=(1.0, 1.0), flip=False)
    for batch in loader.batches(0, 10):
        np.testing.assert_array_equal(batch.image, source.images[batch.index])
    flipping = train_loader(source, image_size=32, crop_scale=(1.0, 1.0), flip=True)
    batch = joined(flipping.batches(0, 20))
    whole = source.images[batch.index]
    same = (batch.image == whole).all((1, 2, 3))
    mirrored = (batch.image == whole[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all() and 50 < mirrored.sum() < 110


def test_threads_keep_the_order():
    class Uneven(Numbered):
        def read(self, index, reduction=None):
            time.sleep(0.002 * (index % 3))
            return super().read(index)

    plain = list(train_loader().batches(5, 25))
    threaded = list(train_loader(Uneven(), num_threads=4).batches(5, 25))
    assert len(plain) == len(threaded) == 20
    for first, second in zip(plain, threaded, strict=True):
        assert_equal(first, second)
    assert list(train_loader().batches(5, 5)) == []


def test_threads_end_with_the_iterator():
    before = set(threading.enumerate())
    batches = train_loader(num_threads=4).batches(0, 10**9)
    next(batches)
    made = set(threading.enumerate()) - before
    assert made
    batches.close()
    deadline = time.monotonic() + 5
    while any(thread.is_alive() for thread in made) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in made)


@pytest.mark.parametrize("num_threads", [0, 3])
def test_the_first_corrupt_image_is_an_error_that_names_it(num_threads):
    loader = train_loader(Numbered(corrupt=[3]), num_threads=num_threads)
    for _ in range(2):  # an error does not make the image a skipped one
        with pytest.raises(UserError, match=r"3, file3: it is cut off\. Repair .*max_corrupt=0"):
            list(loader.batches(0, 2))


def test_corrupt_images_are_replaced_counted_and_logged_once(caplog):
    source = Numbered(corrupt=[3, 7])
    with caplog.at_level(logging.WARNING, logger="occinv.data"):
        loader = train_loader(source, max_corrupt=2)
        batches = list(loader.batches(0, 10))
    assert sorted(record.args[2].name for record in caplog.records) == ["file3", "file7"]
    assert "skipped (1 of at most 2)" in caplog.text and "skipped (2 of at most 2)" in caplog.text
    stream = sample_indices(0, 10, 0, 200)
    for position, index in enumerate(joined(batches).index):
        later = stream[position:]
        assert index == later[(later != 3) & (later != 7)][0]  # the next that can be read
    for batch in batches:
        np.testing.assert_array_equal(batch.image[:, 0, 0, 0], batch.index)
        np.testing.assert_array_equal(batch.label, batch.index % 3)
        assert batch.weight.tolist() == [1.0] * 8
    # Whatever was read before, by whichever process: the batch is the same.
    parts = [
        train_loader(source, max_corrupt=2, process_index=i, process_count=2) for i in range(2)
    ]
    assert_equal(batches[9], joined([part.batch(9) for part in parts]))


def test_one_corrupt_image_too_many_is_an_error_that_names_all():
    loader = train_loader(Numbered(corrupt=[1, 2, 3]), max_corrupt=2)
    with pytest.raises(UserError, match=r"3 images .*file1, file2, file3\..*max_corrupt=2"):
        list(loader.batches(0, 5))
    loader = train_loader(Numbered(count=3, corrupt=[0, 1, 2]), max_corrupt=9)
    with pytest.raises(UserError, match="none of the 3 images of numbered"):
        loader.batch(0)


def test_evaluation_sees_every_image_once_in_order():
    loader = eval_loader(Numbered(), batch_size=4, resize_ratio=1.0, num_threads=2)
    batches = list(loader.batches())
    assert len(loader) == len(batches) == 3
    whole = joined(batches)
    assert whole.index.tolist() == [*range(10), -1, -1]
    assert whole.label.tolist() == [*(i % 3 for i in range(10)), -1, -1]
    assert whole.weight.tolist() == [1.0] * 10 + [0.0] * 2
    np.testing.assert_array_equal(whole.image[:10, 0, 0, 0], range(10))
    assert not whole.image[10:].any()
    assert len(eval_loader(Numbered(8), batch_size=4)) == 2
    with pytest.raises(IndexError):
        loader.batch(3)


@pytest.mark.parametrize("process_count", [2, 4])
def test_evaluation_is_shared_by_processes(process_count):
    # 9 images in batches of 8: some processes have nothing but padding at the end.
    def loader(**options):
        return eval_loader(Numbered(9), batch_size=8, num_threads=0, **options)

    parts = [loader(process_index=i, process_count=process_count) for i in range(process_count)]
    assert {len(part) for part in parts} == {2}
    for number in range(2):
        assert_equal(loader().batch(number), joined([part.batch(number) for part in parts]))


def test_evaluation_pads_where_an_image_is_corrupt(caplog):
    source = Numbered(corrupt=[5])
    loader = eval_loader(source, batch_size=5, max_corrupt=1, num_threads=0)
    whole = joined(loader.batches())
    assert whole.index.tolist() == [0, 1, 2, 3, 4, -1, 6, 7, 8, 9]
    assert whole.weight.tolist() == [1.0] * 5 + [0.0] + [1.0] * 4
    assert [record.args[2].name for record in caplog.records] == ["file5"]
    with pytest.raises(UserError, match="file5"):
        list(eval_loader(source, batch_size=5).batches())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"batch_size": 6, "process_count": 4},
            r"batch_size=6 is not divisible by 4 processes\. Use 4 or 8\.",
        ),
        ({"batch_size": 3, "process_count": 4}, r"batch_size=3 is not .* Use 4\."),
        ({"batch_size": 0}, "batch_size=0, expected 1 or more"),
        ({"seed": -1}, "seed=-1, expected 0 to"),
        ({"seed": 2**63}, "seed=9223372036854775808, expected 0 to"),
        ({"resize_ratio": 2}, r"resize_ratio=2, expected a number in \(0, 1\]"),
        ({"resize_ratio": 0.0}, r"resize_ratio=0\.0, expected a number in \(0, 1\]"),
    ],
)
def test_a_spec_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        LoaderSpec(**{"batch_size": 8, "image_size": 4} | options)


@pytest.mark.parametrize("process_index", [-1, 2])
def test_a_process_that_does_not_exist(process_index):
    with pytest.raises(ValueError, match=f"process_index={process_index}, expected 0 to 1"):
        LoaderSpec(batch_size=8, image_size=4, process_index=process_index, process_count=2)
