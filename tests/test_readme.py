"""The README's example runs as it stands there, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import make_images, tiny
from torch_writer import write_zip

from occinv.cli import main
from occinv.models.position import sincos

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


def test_the_import_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    width, patch, side = 64, 8, 4
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + side**2, width)}
    layers = {"patch_embed.proj": (width, 3, patch, patch)}
    for block in ("blocks.0.", "blocks.1."):
        layers[block + "attn.qkv"] = (3 * width, width)
        layers[block + "attn.proj"] = (width, width)
        layers[block + "mlp.fc1"] = (4 * width, width)
        layers[block + "mlp.fc2"] = (width, 4 * width)
        layers[block + "norm1"] = layers[block + "norm2"] = (width,)
    for name, shape in (layers | {"norm": (width,)}).items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    weights = {name: draw.normal(0, 0.1, shape).astype("f4") for name, shape in shapes.items()}
    weights["pos_embed"] = sincos(side, width)[None]  # MAE is recognized by it
    write_zip(tmp_path / "mae_pretrain_vit_base.pth", {"model": weights})
    commands = re.findall(r"^    occinv (.*published-mae.*)$", README, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["weights", "evaluate", "weights"]
    for command in commands:
        assert main(command.split()) == 0, command
    assert (tmp_path / "runs/published-mae/evaluate/invariance.png").exists()
    assert (tmp_path / "mae-folder" / "config.json").exists()


@pytest.mark.parametrize("link", re.findall(r"\]\(([\w./-]+)\)", README))
def test_links_lead_somewhere(link, repository):
    assert (repository / link).exists()


@pytest.mark.parametrize("config", sorted(set(re.findall(r"configs/\w+\.py", README))))
def test_configs_exist(config, repository):
    assert (repository / config).exists()
