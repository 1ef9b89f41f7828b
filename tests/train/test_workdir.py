"""Whose run a workdir holds."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from occinv import schema
from occinv.cli import main
from occinv.config import CONFIGS, load_config
from occinv.schema import UserError
from occinv.train import workdir
from occinv.train.checkpoints import MANIFEST, Checkpoints
from occinv.train.disk import write_json


def experiment(*overrides: str) -> schema.Experiment:
    return schema.resolve(load_config(str(CONFIGS / "mae.py:smoke"), overrides))


def test_a_run_of_a_version_that_had_fewer_fields_goes_on(tmp_path: Path) -> None:
    workdir.claim(tmp_path, experiment(), ("a", "b"))
    path = tmp_path / workdir.CONFIG
    stored = json.loads(path.read_text())
    del stored["experiment"]["data"]["rand_augment"], stored["experiment"]["encoder"]["gelu"]
    path.write_text(json.dumps(stored))
    workdir.claim(tmp_path, experiment(), ("a", "b"))
    with pytest.raises(UserError, match="rand_augment=False \\(now True\\)"):
        workdir.claim(tmp_path, experiment("--config.data.rand_augment=True"), ("a", "b"))


def test_checkpoints_without_a_config_are_refused(tmp_path: Path) -> None:
    (tmp_path / workdir.CHECKPOINTS / "8").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints of a run, but no config\.json"):
        workdir.claim(tmp_path, experiment(), ())
    shutil.rmtree(tmp_path / workdir.CHECKPOINTS)
    (tmp_path / workdir.CHECKPOINTS).touch()
    with pytest.raises(UserError, match="checkpoints is a file, expected a folder"):
        workdir.claim(tmp_path, experiment(), ())
    assert not (tmp_path / workdir.CONFIG).exists()


def test_what_has_no_influence_may_change(tmp_path: Path) -> None:
    workdir.claim(tmp_path, experiment(), ("a", "b"))
    workdir.claim(tmp_path, experiment("--config.data.num_threads=1"), ("a", "b"))
    with pytest.raises(UserError, match="seed=0 \\(now 1\\)"):
        workdir.claim(tmp_path, experiment("--config.seed=1"), ("a", "b"))
    with pytest.raises(UserError, match="2 classes"):
        workdir.claim(tmp_path, experiment(), ("a", "b", "c"))


def test_a_run_keeps_its_name_and_the_hash_of_its_config(tmp_path: Path) -> None:
    identity = workdir.claim(tmp_path / "a", experiment(), ("a", "b"))
    path = tmp_path / "a" / workdir.CONFIG
    assert (
        workdir.claim(tmp_path / "a", experiment("--config.train.keep=9"), ("a", "b")) == identity
    )
    assert json.loads(path.read_text())["experiment"]["train"]["keep"] == 9
    stored = json.loads(path.read_text())
    del stored["experiment"]["data"]["rand_augment"]  # as an older version wrote it
    path.write_text(json.dumps(stored))
    older = workdir.read_config(tmp_path / "a").identity
    assert older.run == identity.run and older.config != identity.config
    assert workdir.claim(tmp_path / "a", experiment("--config.evals.knn={}"), ("a", "b")) == older
    assert workdir.claim(tmp_path / "a", experiment(), ("a", "b")) == older
    assert json.loads(path.read_text())["experiment"]["evals"] == {}
    other = workdir.claim(tmp_path / "b", experiment(), ("a", "b"))
    assert other.run != identity.run and other.config == identity.config
    seed = workdir.claim(tmp_path / "c", experiment("--config.seed=1"), ("a", "b"))
    assert seed.config != identity.config


def test_the_result_of_another_run_is_not_believed(tmp_path: Path) -> None:
    identity = workdir.claim(tmp_path, experiment(), ())
    assert workdir.read_result(tmp_path) is None
    result = {"step": 3, "metrics": {"loss": math.nan, "top1": 0.5}, "run": identity.run}
    write_json(tmp_path / workdir.RESULT, result)
    found = workdir.read_result(tmp_path)
    assert math.isnan(found["metrics"]["loss"]) and found["metrics"]["top1"] == 0.5
    for other in ({**result, "run": "x"}, {k: v for k, v in result.items() if k != "run"}):
        write_json(tmp_path / workdir.RESULT, other)
        with pytest.raises(UserError, match="result of another run"):
            workdir.read_result(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 40,
        b'{"step": 3, "met',
        b"[]",
        b"\xff\xfe",
        b'{"step": 3, "metrics": {"loss": "x"}}',
        b'{"step": 3, "metrics": {}, "images": {"x": 1}}',
        b'{"step": Infinity, "metrics": {}}',
    ],
)
@pytest.mark.parametrize("name", [workdir.CONFIG, workdir.RESULT])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    workdir.claim(tmp_path, experiment(), ())
    (tmp_path / name).write_bytes(content)
    read = workdir.read_config if name == workdir.CONFIG else workdir.read_result
    with pytest.raises(UserError, match=name) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=name):
        workdir.claim(tmp_path, experiment(), ()) if name == workdir.CONFIG else read(tmp_path)


def test_a_run_of_a_version_without_names_can_be_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir.claim(tmp_path, experiment(), ())
    with Checkpoints(tmp_path / workdir.CHECKPOINTS) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"params": {"a": np.float32(step)}})
    stored = json.loads((tmp_path / workdir.CONFIG).read_text())
    del stored["run"]
    (tmp_path / workdir.CONFIG).write_text(json.dumps(stored))
    write_json(tmp_path / workdir.RESULT, {"step": 2, "metrics": {}})
    folder = tmp_path / workdir.CHECKPOINTS
    (folder / "2" / MANIFEST).unlink()
    manifest = json.loads((folder / "1" / MANIFEST).read_text())
    (folder / "1" / MANIFEST).write_text(json.dumps({"files": manifest["files"]}))
    with pytest.raises(UserError, match=r"Step 2: .*Step 1: .*weights accept"):
        restore(tmp_path)
    assert main(["weights", "accept", str(tmp_path)]) == 0
    assert f"{tmp_path}: wrote the manifest of 1, 2" in capsys.readouterr().out
    assert restore(tmp_path) == 2
    assert workdir.read_result(tmp_path)["step"] == 2
    assert workdir.accept(tmp_path) == []


def restore(path: Path) -> int:
    identity = workdir.read_config(path).identity
    with Checkpoints(path / workdir.CHECKPOINTS, read_only=True, run=identity) as checkpoints:
        return checkpoints.restore_params()[0]


def test_a_damaged_checkpoint_is_not_accepted(tmp_path: Path) -> None:
    workdir.claim(tmp_path, experiment(), ())
    folder = tmp_path / workdir.CHECKPOINTS
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, {"params": {"a": np.float32(1)}})
    path = folder / "1" / MANIFEST
    path.write_text(json.dumps({"files": json.loads(path.read_text())["files"]}))
    shutil.rmtree(folder / "1" / "params")
    with pytest.raises(UserError, match="checkpoint 1 is damaged"):
        workdir.accept(tmp_path)


def test_a_workdir_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in {
        "file": "is a file",
        "file/below": "is a file",
        "link": "is a link to a missing folder",
        "link/below": "is a link to a missing folder",
        "loop": "Too many levels",
        "a" * 300: "too long",
        "a\0b": "null byte",
    }.items():
        with pytest.raises(UserError, match=reason):
            workdir.check_folder(tmp_path / name)
    workdir.check_folder(tmp_path / "new" / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "loop"]
