"""TFRecord files, byte by byte."""

import os
import pickle

import numpy as np
import pytest

from occinv.data import tfrecord
from occinv.data.tfrecord import Damaged, Shards, write_records

# What tf.io.TFRecordWriter of TensorFlow 2.21 writes for the records b"occinv" and b"".
BY_TENSORFLOW = bytes.fromhex(
    "06000000000000007369d5376f6363696e763b9cb6f8000000000000000029039807d8ea82a2"
)


def test_records_are_written_as_tensorflow_writes_them(tmp_path):
    write_records(tmp_path / "a", [b"occinv", b""])
    assert (tmp_path / "a").read_bytes() == BY_TENSORFLOW


def test_records_of_tensorflow_are_read(tmp_path):
    (tmp_path / "a").write_bytes(BY_TENSORFLOW)
    shards = Shards(str(tmp_path))
    assert list(shards.records("a", 38)) == [(0, b"occinv"), (22, b"")]
    assert shards.content("a", 0, 6) == b"occinv"
    assert shards.content("a", 22, 0) == b""


@pytest.mark.parametrize("window", [1, 50, 1 << 20])
def test_a_file_is_read_through_by_windows(tmp_path, monkeypatch, window):
    monkeypatch.setattr(tfrecord, "WINDOW", window)
    draw = np.random.default_rng(0)
    contents = [draw.bytes(int(n)) for n in draw.integers(0, 100, 40)]
    name = "a b%20?.tfrecord-00000-of-00001"  # no character of a name means anything
    write_records(tmp_path / name, contents)
    shards = pickle.loads(pickle.dumps(Shards(str(tmp_path))))  # as for another process
    found = list(shards.records(name, os.path.getsize(tmp_path / name)))
    assert [content for _, content in found] == contents
    for begin, content in reversed(found):
        assert shards.content(name, begin, len(content)) == content


def test_any_flipped_bit_and_any_cut_is_found(tmp_path):
    whole = BY_TENSORFLOW
    shards = Shards(str(tmp_path))
    for place in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(Damaged, match="a is wrong"):
            list(shards.records("a", len(damaged)))
        # The checksum of the length is not needed where the length is known.
        if place // 8 < 22 and place // 8 not in range(8, 12):
            with pytest.raises(Damaged, match="record at byte 0 of a is wrong"):
                shards.content("a", 0, 6)
    for size in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:size])
        with pytest.raises(Damaged, match=f"a ends {'before' if size < 38 else ''}"):
            shards.content("a", 22, 0)
        if size not in (0, 22):  # where a record ends, only the number of records can tell
            with pytest.raises(Damaged, match="a ends within the record at byte"):
                list(shards.records("a", size))
    with pytest.raises(Damaged, match="b is missing"):
        shards.content("b", 0, 6)
