"""The wheel, and what works from it in another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from occinv import __version__

BUILD = """
from setuptools import build_meta
print(build_meta.build_wheel("dist"), build_meta.build_sdist("dist"))
"""


@pytest.fixture(scope="module")
def dist(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a wheel and a source archive, built from a copy of the checkout."""
    copy = tmp_path_factory.mktemp("wheel") / "checkout"
    names = ["occinv", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
    copy.mkdir()
    for name in names:
        place = repository / name
        if place.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(place, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(place, copy / name)
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    return copy / "dist"


@pytest.fixture(scope="module")
def unpacked(dist: Path) -> Path:
    """The files of the wheel, as pip installs them."""
    (wheel,) = dist.glob("*.whl")
    assert wheel.name == f"occinv-{__version__}-py3-none-any.whl"
    folder = dist.parent.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, folder: Path, *words: str) -> str:
    """Run Python in `folder` with the unpacked wheel, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, *words]
    shown = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def test_wheel_and_source_archive_have_every_file(
    unpacked: Path, dist: Path, repository: Path
) -> None:
    patterns = ("*.py", "*.html", "*.css", "*.txt", "py.typed")
    expected = {
        str(path.relative_to(repository))
        for pattern in patterns
        for path in (repository / "occinv").rglob(pattern)
        if "configs" not in path.parts
    }
    expected |= {f"occinv/configs/{path.name}" for path in (repository / "configs").glob("*.py")}
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert {path for path in found if path.startswith("occinv/")} == expected
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    assert expected <= files


def test_configs_are_there_in_another_folder(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text(
        "from occinv.configs import mae\n"
        "def get_config():\n"
        "    config = mae.get_config('smoke')\n"
        "    config.objective.mask_ratio = 0.5\n"
        "    return config\n"
    )
    program = (
        "import occinv\n"
        "from occinv.configs import mae\n"
        "from occinv.config import load_config\n"
        f"assert occinv.__file__.startswith({str(unpacked)!r}), occinv.__file__\n"
        "assert load_config('mae:smoke')['train'] == mae.get_config('smoke').train.to_dict()\n"
        "assert load_config('my.py:seed=3')['objective']['mask_ratio'] == 0.5\n"
    )
    run(unpacked, tmp_path, "-c", program)
    shown = run(unpacked, tmp_path, "-m", "occinv", "list")
    assert "C-MAE" in shown or "cmae" in shown
    assert run(unpacked, tmp_path, "-m", "occinv", "--version") == f"occinv {__version__}\n"
