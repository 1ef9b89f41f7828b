"""The README's example runs as it stands there, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import make_images, tiny

from occinv.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretraining = tiny("mae", make_images(tmp_path / "images"), "train.duration.steps=2")
    assert main(["train", *pretraining, "--workdir", "runs/mae"]) == 0
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 10
    names: dict = {}
    exec(example, names)
    encoder = names["encoder"]
    assert names["tokens"].shape == (1, 1 + encoder.num_patches, encoder.width)
    removed = names["occluded"][0, 1:][~names["visible"]]
    assert np.all(removed == 0) and np.any(names["occluded"][0, 1:][names["visible"]] != 0)


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w./-]+)\)", README))
def test_links_lead_somewhere(link, repository):
    assert (repository / link).exists()


@pytest.mark.parametrize("config", sorted(set(re.findall(r"configs/\w+\.py", README))))
def test_configs_exist(config, repository):
    assert (repository / config).exists()
