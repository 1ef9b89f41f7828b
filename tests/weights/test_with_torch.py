"""Tests against PyTorch, if it is installed: import of its files, export to its layers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from occinv import load_encoder
from occinv.train import workdir
from occinv.weights.export_weights import export_weights
from occinv.weights.import_weights import import_weights

torch = pytest.importorskip("torch", reason="checks against PyTorch itself need it")


def state(reference: Path) -> tuple[dict[str, Any], int]:
    """Returns the encoder of the reference as tensors, and its number of heads."""
    file = np.load(reference / "vit_classifier.npz")
    start = "cls_state/"
    own = [n for n in file.files if n.startswith(start) and "head" not in n]
    weights = {n.removeprefix(start): torch.from_numpy(file[n]) for n in own}
    return weights, json.loads(str(file["config"]))["num_heads"]


class Block(torch.nn.Module):  # type: ignore[name-defined, misc]
    """The block of timm, made of plain layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        nn = torch.nn
        self.heads = heads
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Any) -> Any:
        b, n, _ = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(b, n, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.attn["proj"](y.transpose(1, 2).reshape(x.shape))
        hidden = torch.nn.functional.gelu(self.mlp["fc1"](self.norm2(x)))
        return x + self.mlp["fc2"](hidden)


class ViT(torch.nn.Module):  # type: ignore[name-defined, misc]
    """timm's VisionTransformer with a class token and no head."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, count: int) -> None:
        super().__init__()
        nn = torch.nn
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + count, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Any) -> Any:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_pytorch(reference: Path, zipped: bool, tmp_path: Path) -> None:
    """Imports a checkpoint with the contents of official ones, bit for bit, in both formats."""
    weights, heads = state(reference)
    flat = torch.arange(6.0)
    content = {
        "model": {name: torch.nn.Parameter(value) for name, value in weights.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3), "moment": flat[2:]}}, "view": flat},
        "args": argparse.Namespace(lr=1e-3, size=torch.Size([1]), best=np.float64(0.5)),
        "scaler": None,
        "dtype": torch.float32,
    }
    torch.save(content, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    listing = import_weights(tmp_path / "a", "mae", tmp_path / "run", heads=heads)
    assert set(listing.ignored) == {"optimizer", "args", "scaler", "dtype"}
    encoder = workdir.load_run(tmp_path / "run").params["encoder"]
    qkv = encoder["blocks"]["scan"]["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(qkv[1], weights["blocks.1.attn.qkv.weight"].numpy().T)
    np.testing.assert_array_equal(encoder["position"], weights["pos_embed"].numpy()[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_dtypes(reference: Path, dtype: str, tmp_path: Path) -> None:
    weights, heads = state(reference)
    cast = {name: value.to(getattr(torch, dtype)) for name, value in weights.items()}
    torch.save(cast, tmp_path / "a")
    import_weights(tmp_path / "a", "timm", tmp_path / "run", heads=heads)
    found = workdir.load_run(tmp_path / "run").params["encoder"]["position"]
    np.testing.assert_array_equal(found, cast["pos_embed"].float().numpy()[0])


def test_export_in_pytorch_layers(reference: Path, tmp_path: Path) -> None:
    weights, heads = state(reference)
    torch.save(weights, tmp_path / "a")
    import_weights(tmp_path / "a", "timm", tmp_path / "run", heads=heads)
    export_weights(tmp_path / "run", "timm", tmp_path / "b")
    with safe_open(tmp_path / "b", "pt") as file:
        exported = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(exported) == set(weights)
    assert all(torch.equal(exported[name], weights[name]) for name in weights)

    ours = load_encoder(tmp_path / "run")
    model = ViT(ours.width, ours.depth, heads, ours.patch_size, ours.num_patches)
    model.load_state_dict(exported)
    images = np.random.default_rng(0).random((2, ours.image_size, ours.image_size, 3), np.float32)
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    with torch.no_grad():
        theirs = model(torch.from_numpy((images - mean) / std).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours.features(images), theirs, rtol=1e-4, atol=1e-4)
