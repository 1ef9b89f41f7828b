"""The writer for Weights & Biases: with a stand-in for the package, and with it if installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import toy_config

from occinv import schema
from occinv.config import load_config
from occinv.schema import UserError
from occinv.train import wandb_writer
from occinv.train.loop import make_writer
from occinv.train.prepare import prepare
from occinv.train.wandb_writer import WandbWriter, check_wandb
from occinv.train.writers import Writer

CONFIG = {"objective": {"name": "mae"}, "seed": 3}


class StandIn(types.ModuleType):
    """The functions of wandb that the writer calls, which keep their arguments."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> StandIn:
        self.begun.append(arguments)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    Settings = staticmethod(dict)
    Image = staticmethod(np.asarray)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", found)
    return found


def experiment(tmp_path: Path, *fields: str) -> schema.Experiment:
    spec = f"{toy_config(tmp_path)}:{tmp_path}"
    return schema.resolve(load_config(spec, [f"--config.{field}" for field in fields]))


def test_scalars_images_and_config_are_logged(wandb: StandIn, tmp_path: Path) -> None:
    writer = WandbWriter(tmp_path / "my-run", "project", CONFIG)
    writer.write_scalars(3, {"loss": np.float32(0.5), "count": np.int32(2)})
    writer.write_images(3, {"patches": np.ones((2, 4, 4, 3), np.float32)})
    writer.close()
    (begun,) = wandb.begun
    assert (begun["project"], begun["name"], begun["config"]) == ("project", "my-run", CONFIG)
    assert begun["dir"] == str(tmp_path / "my-run")
    (step, scalars), (_, images) = wandb.logged
    assert (step, scalars) == (3, {"loss": 0.5, "count": 2})
    assert {type(value) for value in scalars.values()} == {float, int}
    assert [image.max() for image in images["patches"]] == [255, 255]
    assert wandb.finished == 1


def test_a_resumed_training_continues_its_run(wandb: StandIn, tmp_path: Path) -> None:
    for name in ("one", "one", "two"):
        WandbWriter(tmp_path / name, "project", CONFIG).close()
    ids = [begun["id"] for begun in wandb.begun]
    assert ids[0] == ids[1] != ids[2]
    assert {begun["resume"] for begun in wandb.begun} == {"allow"}


def test_process_0_alone_logs_and_only_if_asked(
    wandb: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(tmp_path, "train.wandb=project")
    make_writer(tmp_path / "run", 0, experiment(tmp_path)).close()
    assert not wandb.begun
    make_writer(tmp_path / "run", 0, asked).close()
    (begun,) = wandb.begun
    assert begun["config"]["train"]["wandb"] == "project"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert type(make_writer(tmp_path / "run", 0, asked)) is Writer
    assert len(wandb.begun) == 1


def test_a_missing_package_is_an_error_before_the_data_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_writer.importlib.util, "find_spec", lambda name: None)
    check_wandb(None)
    with pytest.raises(UserError, match="'p' needs the package wandb"):
        prepare(experiment(tmp_path, "train.wandb=p"))  # its folder of images is empty


def test_the_package_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra occinv[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):  # the second is a resumed run
        writer = WandbWriter(tmp_path / "run", "project", CONFIG)
        writer.write_scalars(step, {"loss": 0.5})
        writer.write_images(step, {"gray": np.zeros((2, 8, 8, 1), np.uint8)})
        writer.close()
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert folders and all(list(folder.glob("run-*.wandb")) for folder in folders)
