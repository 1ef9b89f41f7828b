"""data.num_workers: processes that make the batches."""

import gc
import logging
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import jax
import numpy as np
import pytest
from test_loader import Numbered, assert_equal, eval_loader, train_loader
from tiny_runs import TESTS, assert_same_end, make_images, overrides, run, toy_config

from occinv.data.embedded import digits, photos
from occinv.data.folder import FolderSource, open_folder
from occinv.data.workers import made_by_workers
from occinv.schema import UserError
from occinv.train import loop
from occinv.train.writers import read_scalars


class Fragile(Numbered):
    """Numbered images. Reading one of them kills the process."""

    def read(self, index, reduction=None):
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(index)


class Noted:
    """Notes in a folder which numbers were asked for."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, number):
        (self.folder / str(number)).touch()
        return np.full(3, number)


class Locked(RuntimeError):
    """It cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Unmade(RuntimeError):
    """It can be pickled, but not unpickled."""

    def __init__(self, text):
        super().__init__(text)

    def __reduce__(self):
        return Unmade, ()


class Failing(Numbered):
    """Numbered images that cannot be read for a reason of their own."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def read(self, index, reduction=None):
        raise self.error("the disk is gone")


class Local(Numbered):
    """It holds what cannot be sent to another process."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.fixture
def blocks(monkeypatch):
    """The files of the shared memory that this process opens."""
    found = set()
    open_block = SharedMemory.__init__

    def recorded(self, name=None, *args, **options):
        open_block(self, name, *args, **options)
        found.add(Path("/dev/shm") / self.name.lstrip("/"))

    monkeypatch.setattr(SharedMemory, "__init__", recorded)
    return found


def test_the_batches_are_those_of_one_process(caplog, blocks):
    """Also with images that cannot be read: they are replaced, counted and logged here, once."""
    source = Numbered(corrupt=[3, 7])
    expected = list(train_loader(source, max_corrupt=2).batches(5, 25))
    caplog.clear()
    loader = train_loader(source, max_corrupt=2, num_workers=3)
    batches = list(loader.batches(5, 25))
    assert len(batches) == len(expected) == 20
    for first, second in zip(batches, expected, strict=True):
        assert_equal(first, second)
        assert all(type(x) is np.ndarray for x in jax.tree.leaves(first))
    assert caplog.text.count("skipped (1 of at most 2)") == 1
    assert sorted(record.args[2].name for record in caplog.records) == ["file3", "file7"]
    assert list(loader.batches(5, 5)) == []
    # Stopping early leaves no process and no shared memory.
    batches = loader.batches(0, 10**9)
    next(batches)
    batches.close()
    gc.collect()
    deadline = time.monotonic() + 10
    while any(block.exists() for block in blocks) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(blocks) > 80  # four arrays of a batch
    assert not any(block.exists() for block in blocks)
    assert not multiprocessing.active_children()


def test_evaluation_batches_are_those_of_one_process(caplog):
    """Each pass skips the corrupt image, which is logged once; few batches start few processes."""
    source = Numbered(corrupt=[3])
    expected = list(eval_loader(source, batch_size=4, max_corrupt=1).batches())
    caplog.clear()
    loader = eval_loader(source, batch_size=4, max_corrupt=1, num_workers=9)
    for _ in range(2):
        made = loader.batches()
        batches = [next(made)]
        assert len(multiprocessing.active_children()) == 3
        batches += made
        assert len(batches) == len(expected) == 3
        for first, second in zip(batches, expected, strict=True):
            assert_equal(first, second)
    assert caplog.text.count("skipped") == 1
    with pytest.raises(UserError, match=r"file3: it is cut off\. Repair .*max_corrupt=0"):
        list(eval_loader(source, batch_size=4, num_workers=2).batches())


def test_a_worker_makes_four_batches_ahead(tmp_path):
    """docs/data.md computes the memory from it."""
    made = made_by_workers(Noted(tmp_path), 0, 10**6, 2)
    taken = [int(next(made)[0]) for _ in range(20)]
    time.sleep(2)
    assert taken == list(range(20))
    assert 20 + 2 < len(list(tmp_path.iterdir())) <= 20 + 2 * 4
    made.close()


def test_errors_are_those_of_one_process():
    with pytest.raises(UserError, match=r"3, file3: it is cut off\. Repair .*max_corrupt=0"):
        list(train_loader(Numbered(corrupt=[3]), num_workers=1).batches(0, 2))
    loader = train_loader(Numbered(corrupt=[1, 2, 3]), max_corrupt=2, num_workers=2)
    with pytest.raises(UserError, match=r"3 images .*file1, file2, file3\..*max_corrupt=2"):
        list(loader.batches(0, 5))
    loader = train_loader(Numbered(count=3, corrupt=[0, 1, 2]), max_corrupt=9, num_workers=1)
    with pytest.raises(UserError, match="none of the 3 images of numbered"):
        list(loader.batches(0, 1))


def test_a_killed_worker_is_an_error():
    with pytest.raises(UserError, match=r"a process of data\.num_workers=2 ended: .*-9.*fewer"):
        list(train_loader(Fragile(), num_workers=2).batches(0, 5))


@pytest.mark.parametrize("error", [RuntimeError, Locked, Unmade])
def test_another_error_of_a_source_arrives(error):
    """Also one that cannot be pickled, or cannot be unpickled."""
    with pytest.raises(RuntimeError, match="the disk is gone"):
        list(train_loader(Failing(error), num_workers=1).batches(0, 5))


def test_a_source_that_cannot_be_pickled_is_an_error():
    message = r"data\.num_workers=1 .*cannot be pickled: .*lock.*data\.num_workers=0"
    with pytest.raises(UserError, match=message):
        list(train_loader(Local(), num_workers=1).batches(0, 5))


def test_what_a_worker_logs_is_logged(tmp_path, caplog):
    """Extra bytes in a JPEG are a warning."""
    from test_bad_data import photographs

    (encoded,) = photographs(1)
    (tmp_path / "a.jpg").write_bytes(encoded[:-2] + b"\x00" * 9 + encoded[-2:])
    loader = train_loader(open_folder(str(tmp_path), train=True), batch_size=2, num_workers=1)
    with caplog.at_level(logging.WARNING, logger="occinv.data"):
        list(loader.batches(0, 1))
    assert "a.jpg: " in caplog.text and "extraneous bytes" in caplog.text


@pytest.mark.parametrize("open_one", [photos, digits])
def test_embedded_sources_can_be_sent(open_one):
    source = open_one(True)
    assert_equal(pickle.loads(pickle.dumps(source)).read(5).image, source.read(5).image)


def train_some_steps(folder):
    """Start `occinv train` in a process group of its own, and wait for its first loss."""
    config = f"{toy_config(folder)}:{make_images(folder / 'images')}"
    fields = ("train.duration.steps=1000000", "data.num_workers=2", "train.log_every.steps=1")
    command = [sys.executable, "-m", "occinv", "train", "--workdir", str(folder / "run")]
    process = subprocess.Popen(
        [*command, "--config", config, *overrides(*fields)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
        start_new_session=True,
    )
    log = folder / "run" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and '"loss"' in log.read_text()):
        time.sleep(0.05)
    return process


def group_is_empty(group):
    """Whether the processes of a group end within seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_run_with_workers_ends_as_one_without(tmp_path):
    config = f"{toy_config(tmp_path)}:{make_images(tmp_path / 'images')}"
    for workers in (0, 2):
        fields = ("train.log_every.steps=1", f"data.num_workers={workers}")
        run(["--config", config], tmp_path / str(workers), *fields)
    assert_same_end(tmp_path / "0", tmp_path / "2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_the_run(number, tmp_path):
    """Ctrl-C and a scheduler signal the whole process group."""
    process = train_some_steps(tmp_path)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err and "leaked" not in err, err
    assert "stopped and saved at step" in out
    assert group_is_empty(process.pid)


def test_workers_end_with_a_killed_process(tmp_path):
    process = train_some_steps(tmp_path)
    process.kill()
    process.communicate(timeout=60)
    assert group_is_empty(process.pid)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_run_that_waits_for_images_says_so_once(backend, tmp_path, monkeypatch, caplog):
    """On CPU the cores are busy with the steps."""
    read = FolderSource.read

    def slowly(*args):
        time.sleep(0.02)
        return read(*args)

    monkeypatch.setattr(FolderSource, "read", slowly)
    monkeypatch.setattr(loop.jax, "default_backend", lambda: backend)
    images = make_images(tmp_path / "images")
    fields = ("data.num_threads=0", "train.log_every.steps=1", "train.precision=float32")
    workdir = tmp_path / "run"
    run(["--config", f"{toy_config(tmp_path)}:{images}"], workdir, *fields)
    waited = [line.get("data_wait_fraction", 0) for line in read_scalars(workdir / "metrics.jsonl")]
    said = re.findall(r"waits for images (\d+) % of the time", caplog.text)
    assert said == ([f"{100 * waited[2]:.0f}"] if backend == "gpu" else [])
