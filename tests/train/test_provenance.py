"""Where and how a run was started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from occinv import __version__
from occinv.train import provenance
from occinv.train.provenance import commit_of, record_start


def test_each_start_adds_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["occinv", "train", "--workdir", "my run"])
    record_start(tmp_path)
    monkeypatch.setattr(sys, "argv", ["again"])
    record_start(tmp_path)
    first, second = json.loads((tmp_path / "provenance.json").read_text())
    assert first["command"] == "occinv train --workdir 'my run'"
    assert second["command"] == "again"
    assert first["started"] <= second["started"]
    assert (first["occinv"], first["jax"]) == (__version__, jax.__version__)
    assert (first["platform"], first["devices"], first["processes"]) == ("cpu", 8, 1)


def test_process_0_alone_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    record_start(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_commit_is_that_of_a_checkout(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit_of(tmp_path) is None  # no commit yet
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit_of(tmp_path) == head.stdout.strip()
    (tmp_path / "file").write_text("2")
    assert commit_of(tmp_path) == head.stdout.strip() + "-dirty"
    # A package that is installed below somebody's repository is not of that repository.
    assert commit_of(tmp_path / "site-packages") is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert commit_of(tmp_path) is None
    assert provenance.facts()["commit"] is None
