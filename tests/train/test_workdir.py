"""Whose run a workdir holds."""

import json
from pathlib import Path

import pytest

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.schema import UserError
from occinv.train import workdir


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


def test_what_has_no_influence_may_change(tmp_path: Path) -> None:
    workdir.claim(tmp_path, experiment(), ("a", "b"))
    workdir.claim(tmp_path, experiment("--config.data.num_threads=1"), ("a", "b"))
    with pytest.raises(UserError, match="seed=0 \\(now 1\\)"):
        workdir.claim(tmp_path, experiment("--config.seed=1"), ("a", "b"))
    with pytest.raises(UserError, match="2 classes"):
        workdir.claim(tmp_path, experiment(), ("a", "b", "c"))
