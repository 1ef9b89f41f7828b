"""TFRecord files, byte by byte."""

import http.server
import os
import pickle
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

from occinv.data.tfds import tfrecord
from occinv.data.tfds.tfrecord import Damaged, Shards, TfRecords, write_records

# What tf.io.TFRecordWriter of TensorFlow 2.21 writes for the records b"occinv" and b"".
BY_TENSORFLOW = bytes.fromhex(
    "06000000000000007369d5376f6363696e763b9cb6f8000000000000000029039807d8ea82a2"
)


def content(shards, name, begin, length):
    return shards.fetch_record(name, begin, length)()


def test_records_are_written_as_tensorflow_writes_them(tmp_path):
    write_records(tmp_path / "a", [b"occinv", b""])
    assert (tmp_path / "a").read_bytes() == BY_TENSORFLOW


def test_records_of_tensorflow_are_read(tmp_path):
    (tmp_path / "a").write_bytes(BY_TENSORFLOW)
    shards = Shards(str(tmp_path))
    assert list(shards.records("a", 38)) == [(0, b"occinv"), (22, b"")]
    assert content(shards, "a", 0, 6) == b"occinv"
    assert content(shards, "a", 22, 0) == b""


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
    for begin, whole in reversed(found):
        assert content(shards, name, begin, len(whole)) == whole


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
                content(shards, "a", 0, 6)
    for size in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:size])
        with pytest.raises(Damaged, match="a ends too soon"):
            content(shards, "a", 22, 0)
        if size not in (0, 22):  # where a record ends, only the number of records can tell
            with pytest.raises(Damaged, match="a ends within the record at byte"):
                list(shards.records("a", size))
    with pytest.raises(Damaged, match="b is missing"):
        content(shards, "b", 0, 6)


class Bucket(http.server.BaseHTTPRequestHandler):
    """As much of Google Cloud Storage as reading a range of an object takes, slowly answered."""

    protocol_version = "HTTP/1.1"
    folder, waiting, most = "", 0, 0
    lock = threading.Lock()

    def do_GET(self):
        bucket, name = urlparse(self.path).path.removeprefix("/storage/v1/b/").split("/o/")
        assert bucket == "bucket"
        with Bucket.lock:
            Bucket.waiting += 1
            Bucket.most = max(Bucket.most, Bucket.waiting)
        time.sleep(0.05)
        with Bucket.lock:
            Bucket.waiting -= 1
        file = os.path.join(Bucket.folder, unquote(name).removeprefix("tfds/"))
        first, last = (int(n) for n in self.headers["range"].removeprefix("bytes=").split("-"))
        found = Path(file).read_bytes()[first : last + 1] if os.path.exists(file) else None
        self.send_response(404 if found is None else 206)
        if found is not None:
            self.send_header("Content-Range", f"bytes {first}-{last}/{os.path.getsize(file)}")
            self.send_header("x-goog-generation", "1")
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()
        self.wfile.write(found or b"")

    def log_message(self, *_):
        """Nothing."""


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 100


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket/tfds is the test's folder."""
    monkeypatch.setattr(Bucket, "folder", str(tmp_path))
    monkeypatch.setattr(Bucket, "most", 0)
    server = Server(("localhost", 0), Bucket)
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}")
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "of no importance")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "gs://bucket/tfds"
    server.shutdown()
    server.server_close()


def test_prefetched_records_of_a_bucket_come_together(tmp_path, bucket):
    contents = [b"%d" % i for i in range(40)]
    write_records(tmp_path / "a", contents)
    shards = Shards(bucket)
    found = list(shards.records("a", os.path.getsize(tmp_path / "a")))
    assert [content for _, content in found] == contents
    begin, length = [begin for begin, _ in found], [len(content) for _, content in found]
    zeros = np.zeros(40, int)
    records = TfRecords(
        shards, ["a"], zeros, np.array(begin), np.array(length), lambda content: content
    )
    assert Bucket.most == 1
    assert records[7] == b"7"
    records.prefetch(range(40))
    assert [records[i] for i in (*range(40), 3)] == [*contents, b"3"]
    assert Bucket.most > 5
    with pytest.raises(Damaged, match="b is missing"):
        content(shards, "b", 0, 6)
