"""A workdir in a bucket, of which an emulator of Google Cloud Storage holds the objects."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from example_models import save_run
from gcs_emulator import Emulator, serve
from tiny_runs import (
    Crash,
    assert_same_end,
    at_step,
    crash,
    losses,
    overrides,
    run,
    tensorboard,
    toy_config,
)

from occinv import cli, load_encoder
from occinv.config import load_config
from occinv.evaluate import evaluate
from occinv.evaluators.reconstructions import Triple
from occinv.paths import as_path, files_in
from occinv.progress import Progress
from occinv.report.rows import compare
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.train.disk import RunFailed
from occinv.train.file_writer import file_writer
from occinv.train.lock import LOCK, Claim, lock_workdir
from occinv.train.manifest import COMMIT, delete_step
from occinv.train.profiler import Profiler

pytestmark = pytest.mark.usefixtures("compiled")

FIELDS = ("train.log_every.steps=1", "train.checkpoint_every.steps=2", "train.keep=2")
MAE = {"name": "mae", "decoder_width": 8, "decoder_depth": 1, "decoder_heads": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[Emulator]:
    """The emulator, to which the libraries of this process are connected."""
    with serve() as server, pytest.MonkeyPatch.context() as patched:
        patched.setenv("STORAGE_EMULATOR_HOST", server.address)
        patched.setenv("TENSORSTORE_GCS_HTTP_URL", server.address)
        patched.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "of no importance")
        patched.setenv("NO_GCE_CHECK", "true")
        patched.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patched.setitem(fsspec.config.conf.setdefault("gcs", {}), "token", "anon")
        yield server


@pytest.fixture
def bucket(server: Emulator) -> Iterator[Path]:
    """`gs://bucket/runs`, which is empty."""
    server.objects.clear()
    yield as_path("gs://bucket/runs")
    server.refuse = ()


@pytest.fixture(scope="module")
def arguments(images: Path) -> list[str]:
    """`--config …` of eight steps of Toy, logged at every step and saved at every second."""
    return ["--config", f"{toy_config(images.parent)}:{images}", *overrides(*FIELDS)]


@pytest.fixture(scope="module")
def whole(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of the run on a disk that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(arguments, workdir)
    return workdir


def test_a_run_in_a_bucket_crashes_and_ends_like_one_on_a_disk(
    arguments: list[str], whole: Path, bucket: Path, server: Emulator
) -> None:
    for step in (1, 5):
        with pytest.raises(Crash):
            run(arguments, bucket, watch=at_step(step, crash))
    assert run(arguments, bucket).step == 8
    assert_same_end(bucket, whole)
    assert tensorboard(bucket) == tensorboard(whole) == losses(whole)
    on_disk = {path.name for path in whole.iterdir() if "tfevents" not in path.name}
    assert on_disk == {path.name for path in bucket.iterdir() if "tfevents" not in path.name}
    with Checkpoints(bucket / files.CHECKPOINTS, read_only=True) as checkpoints:
        assert checkpoints.steps() == [6, 8]
    assert not [name for name in server.objects if "tmp" in name or "gs:" in name]
    assert not Path("gs:").exists()


def test_another_start_takes_the_workdir_over(arguments: list[str], bucket: Path) -> None:
    def take() -> None:
        assert Claim(bucket / LOCK).take()

    with pytest.raises(RunFailed, match=r"runs was taken over by process \d+ on .* goes on from"):
        run(arguments, bucket, watch=at_step(3, take))
    with Checkpoints(bucket / files.CHECKPOINTS, read_only=True) as checkpoints:
        assert checkpoints.steps() == [2]
    with lock_workdir(bucket, "", trains=True) as lock:
        with lock_workdir(bucket, ""):  # an evaluation
            lock.check()
        with lock_workdir(bucket, "", trains=True), pytest.raises(RunFailed, match="taken over"):
            lock.check()
        lock.take()
    with pytest.raises(RunFailed, match="was deleted"), lock_workdir(bucket, "", trains=True):
        (bucket / LOCK).unlink()


def test_metrics_are_in_the_bucket_after_a_flush_and_go_on_after_a_kill(
    bucket: Path, server: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = file_writer(bucket, -1)
    for step in (1, 2, 3):
        first.write_scalars(step, {"loss": float(step)})
        if step == 2:
            first.flush()
    assert losses(bucket) == tensorboard(bucket) == {1: 1.0, 2: 2.0}
    again = file_writer(bucket, 1)  # the first is killed
    again.write_scalars(2, {"loss": 5.0})
    again.flush()
    assert losses(bucket) == tensorboard(bucket) == {1: 1.0, 2: 5.0}
    uploads = len(server.requests)
    again.flush()
    assert len(server.requests) == uploads  # nothing has changed
    monkeypatch.setattr("occinv.train.file_writer.SHOWN", 0)
    again.write_scalars(3, {"loss": 6.0})
    assert losses(bucket) == tensorboard(bucket) == {1: 1.0, 2: 5.0, 3: 6.0}
    folder = again._folder
    again.close()
    assert not folder.exists()
    for writer in first.writers:  # its files stay open until here
        writer.close()


def test_damaged_incomplete_and_old_steps(
    bucket: Path, server: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"params": {"w": np.arange(6.0)}, "rest": {"v": jax.numpy.ones(3)}}
    with Checkpoints(bucket, keep=9) as checkpoints:
        for step in range(5):
            checkpoints.save(step, state)
    name = next(name for name in server.objects if name.startswith("runs/4/params/ocdbt"))
    content, generation = server.objects[name]
    server.objects[name] = (bytes([content[0] ^ 1]) + content[1:], generation)
    del server.objects[f"runs/3/{COMMIT}"]
    listed = {name.split("/")[1] for name in server.objects}
    assert listed == {"0", "1", "2", "3", "4"}
    with Checkpoints(bucket, keep=2, read_only=True) as reader:
        assert reader.restore(state)[0] == 2
        assert reader.steps() == [0, 1, 2, 4]
    with Checkpoints(bucket, keep=2) as checkpoints:
        step, found = checkpoints.restore(state)
        assert step == 2
        np.testing.assert_array_equal(found["params"]["w"], state["params"]["w"])
        checkpoints.prune()
        assert checkpoints.steps() == [1, 2]
    assert "checkpoint 4 is damaged" in caplog.text
    assert {name.split("/")[1] for name in server.objects} == {"1", "2", "4.damaged"}


def test_a_deletion_that_is_killed_leaves_no_complete_step(
    bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(bucket, keep=9) as checkpoints:
        checkpoints.save(0, {"params": np.ones(2)})
        checkpoints.save(1, {"params": np.ones(2)})
    monkeypatch.setattr("occinv.train.manifest.remove_folder", lambda folder: None)
    delete_step(bucket / "0")
    with Checkpoints(bucket, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]


def test_what_reads_a_run_reads_a_bucket(
    bucket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (save_run(bucket / name, MAE) for name in ("one", "two"))
    local = save_run(tmp_path / "one", MAE)
    (record,) = (found.record for found in evaluate("reconstructions", [one], num_images=2))
    assert record.step == 3
    names = {path.name for path in (one / "evaluate" / "reconstructions").iterdir()}
    assert names == {f"{i}_{name}.png" for i in (0, 1) for name in Triple._fields}
    said = cli_output(capsys, "report", one, two)
    assert said.splitlines()[-1] == f"{one}/comparison.html"
    assert (one / "comparison.html").read_text().count("data:image/png") == 6
    rows = compare([str(one), str(two)])
    assert [row["workdir"] for row in rows] == [str(one), str(two)]
    encoder = load_encoder(f"{one}/checkpoints/3")
    pixels = np.zeros((1, encoder.image_size, encoder.image_size, 3), np.uint8)
    expected = load_encoder(local).features(pixels)
    np.testing.assert_array_equal(encoder.features(pixels), expected)
    assert load_config(f"mae:init_from={one}")["encoder"]["width"] == encoder.width
    cli_output(capsys, "weights", "export", "--to", "timm", one, tmp_path / "out.safetensors")
    cli_output(
        capsys, "weights", "import", tmp_path / "out.safetensors", "--to", bucket / "imported"
    )
    imported = load_encoder(bucket / "imported")
    np.testing.assert_array_equal(imported.features(pixels), expected)


def cli_output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_a_profile_is_copied_to_the_bucket(bucket: Path) -> None:
    with Profiler(bucket / files.PROFILE, (1, 1)) as profiler, profiler.step(1):
        jax.numpy.ones(3).block_until_ready()
    found = [path.name for path in files_in(bucket)]
    assert any(name.endswith(".xplane.pb") for name in found)
    assert not profiler._traced.exists()


def test_mistakes_are_one_line(
    arguments: list[str],
    bucket: Path,
    server: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(workdir: object, *more: str, command: str = "train", status: int = 2) -> str:
        given = [command, *arguments, "--workdir", str(workdir), *more]
        assert cli.main(given) == status
        lines = capsys.readouterr().err.splitlines()
        assert sum(line.startswith("occinv: ") for line in lines) == 1
        assert "Traceback" not in str(lines)
        return lines[-1]

    assert "there is no bucket gs://other. Create it" in fails("gs://other/run")
    with monkeypatch.context() as patched:
        watch = at_step(3, lambda: setattr(server, "refuse", ("POST",)))
        patched.setattr(Progress, "stage", lambda self, name: watch)
        failed = fails(bucket, status=1)
    assert failed.startswith("occinv: the bucket failed: Forbidden: ")
    assert failed.endswith("Run the same command to continue.")
    server.objects.clear()
    assert "unknown scheme, expected a path or gs://" in fails("s3://bucket/run")
    assert "names no bucket" in fails("gs://")
    server.refuse = ("POST",)
    assert "gs://bucket/runs cannot be written: Forbidden" in fails(bucket)
    server.refuse = ("GET",)
    assert "gs://bucket cannot be read: Forbidden" in fails(bucket)
    server.refuse = ()
    assert not server.objects
    sweep = ("--set", "optimizer.base_lr=1.0,2.0", "--jobs", "1", "of", "2")
    assert "is in a bucket without locks" in fails(bucket, *sweep, command="sweep")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "needs the package gcsfs; run `pip install gcsfs`" in fails(bucket)
    assert not server.objects


def test_paths(bucket: Path, server: Emulator) -> None:
    assert str(as_path(Path("gs://bucket/a"))) == "gs://bucket/a"  # pathlib drops a slash
    path = bucket / "a"
    path.write_bytes(b"content")
    assert (bucket.is_dir(), bucket.is_file(), path.is_dir(), path.is_file()) == (1, 0, 0, 1)
    server.refuse = ("GET",)
    for ask in (path.exists, path.is_file, path.is_dir):
        with pytest.raises(OSError, match="Forbidden"):
            ask()  # else a run would start anew
