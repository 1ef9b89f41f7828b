"""Export followed by import returns every array bit for bit."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import jax
import numpy as np
import pytest
from safetensors import safe_open
from tiny_runs import make_images, tiny

from occinv import schema
from occinv.cli import main
from occinv.config import load_config
from occinv.objectives import forward
from occinv.objectives.base import objective_of
from occinv.train import workdir
from occinv.train.checkpoints import Checkpoints
from occinv.weights.export_weights import export_weights
from occinv.weights.import_weights import import_weights

CLASSES = ("dark", "light", "neither")


def run_of(config: str, folder: Path, *fields: str, classes: tuple[str, ...] = ()) -> Path:
    """Writes a workdir as training does, with random parameters."""
    fields = ("encoder.depth=2", *fields)
    arguments = tiny(config, make_images(folder / "images"), *fields)
    experiment = schema.resolve(load_config(arguments[1], arguments[2:]))
    objective = objective_of(experiment, len(classes), 8)
    params, _ = jax.eval_shape(functools.partial(forward.init, objective), jax.random.key(0))
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda x: draw.normal(size=x.shape).astype(x.dtype), params)
    identity = workdir.claim(folder / "run", experiment, classes)
    with Checkpoints(folder / "run" / workdir.CHECKPOINTS, run=identity) as checkpoints:
        checkpoints.save(3, {"params": params})
    return folder / "run"


def same(tree: Any, other: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), tree, other)


def expected(params: dict[str, Any], target: str) -> dict[str, Any]:
    """Returns parameters of the same features of whole images after an export.

    Dinov2 always has LayerScale. Without a class token its row of the positions is not exported.
    """
    encoder = dict(params["encoder"])
    if target == "huggingface":
        encoder.pop("mask_token", None)
    if "registers" in encoder:
        blocks = encoder["blocks"]["scan"]
        ones = {"scale": np.ones_like(blocks["norm1"]["bias"])}
        encoder["blocks"] = {"scan": blocks | {"scale1": ones, "scale2": ones}}
    if "class_token" not in encoder:
        encoder["position"] = encoder["position"].copy()
        encoder["position"][0] = 0
    return params | {"encoder": encoder}


def check_program(said: str, target: str, file: str, num_classes: int, extra: bool) -> None:
    """Runs the program at the end of a report with stand-ins for the libraries."""
    library = MagicMock()
    names = ["timm", "safetensors", "safetensors.torch", "transformers"]
    names += ["big_vision", "big_vision.models"]
    with patch.dict(sys.modules, dict.fromkeys(names, library)):
        exec(said.partition("load with:\n")[2], found := {})
    if target == "huggingface":
        (model,) = json.loads(Path(file, "config.json").read_text())["architectures"]
        assert getattr(library, model).from_pretrained.call_args.args == (file,)
        return
    if target == "timm":
        library.torch.load_file.assert_called_once_with(file)
        state = library.torch.load_file.return_value
        strict = {"strict": False} if extra else {}
        found["model"].load_state_dict.assert_called_once_with(state, **strict)
        made = library.models.VisionTransformer.call_args.kwargs
    else:
        library.vit.load.assert_called_once_with(None, file, None)
        made = library.vit.Model.call_args.kwargs
    assert (made["num_classes"] or 0, made["depth"], made["num_heads"]) == (num_classes, 2, 2)


RECTANGLE = (
    *("data.image_size=(16, 24)", "encoder.patch_size=(8, 4)"),
    *("data.channels=1", "encoder.pixel_range='half'"),
)
CASES = [
    ("mae", (), (), "timm"),
    ("mae", (), (), "big_vision"),
    ("cmae", (), (), "timm"),
    ("cmae", (), (), "big_vision"),
    ("finetune", ("objective.pooling='class'",), CLASSES, "timm"),
    ("finetune", ("objective.pooling='class'",), CLASSES, "big_vision"),
    ("finetune", ("objective.pooling='mean'",), CLASSES, "timm"),
    ("finetune", ("objective.pooling='class'", "encoder.gelu='tanh'"), CLASSES, "huggingface"),
    ("mae", (), (), "huggingface"),
    ("cmae", (), (), "huggingface"),
    ("mocov3", ("encoder.registers=2", "encoder.pixel_range='half'"), (), "huggingface"),
    ("mae", ("encoder.class_token=False", "encoder.gelu='tanh'"), (), "timm"),
    ("mae", ("encoder.class_token=False",), (), "big_vision"),
    ("mae", RECTANGLE, (), "timm"),
    ("mae", RECTANGLE, (), "big_vision"),
    ("finetune", ("objective.pooling='class'", *RECTANGLE), CLASSES, "huggingface"),
]


@pytest.mark.parametrize(("config", "fields", "classes", "target"), CASES)
def test_export_and_import(
    config: str, fields: tuple[str, ...], classes: tuple[str, ...], target: Any, tmp_path: Path
) -> None:
    run = run_of(config, tmp_path, *fields, classes=classes)
    said = export_weights(run, target, tmp_path / "file")
    # big_vision's file has no grid, and 12 patches are not a square.
    grid = (2, 6) if target == "big_vision" and RECTANGLE[0] in fields else None
    import_weights(tmp_path / "file", target, tmp_path / "back", grid=grid)
    before, after = workdir.load_run(run), workdir.load_run(tmp_path / "back")
    written = ["encoder", "head", *(["decoder"] if target == "huggingface" else [])]
    kept = {name: before.params[name] for name in written if name in before.params}
    same(after.params, expected(kept, target))
    check_program(said, target, str(tmp_path / "file"), len(classes), config == "cmae")
    left = sorted(set(before.params) - set(kept))
    assert f"left out: {', '.join(left) or 'nothing'}" in said
    ours, theirs = before.objective.networks.encoder, after.objective.networks.encoder
    assert ("no mask_token" in said) == (config == "cmae")
    assert theirs.mask_token == (config == "cmae" and target != "huggingface")
    names = ["image_size", "patch_size", "width", "depth", "heads", "final_norm", "registers"]
    names += ["class_token", "channels"]
    if target != "big_vision":  # its file does not store the others
        names += ["gelu", "pixel_range"]
        warned = "encoder.gelu='tanh'" in fields and target == "timm"
        assert ("assumes erf" in said) == warned
    else:
        assert "encoder.gelu is erf, but big_vision assumes tanh" in said
        assert (theirs.gelu, theirs.pixel_range) == ("tanh", "half")
    for name in names:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(after.classes) == len(classes)


def test_names_and_layouts_of_timm(tmp_path: Path) -> None:
    fields = ("encoder.gelu='tanh'", "encoder.pixel_range='half'")
    run = run_of("mae", tmp_path, *fields)
    said = export_weights(run, "timm", tmp_path / "file")
    assert said.count("warning") == 2
    with safe_open(tmp_path / "file", "numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    encoder = workdir.load_run(run).params["encoder"]
    width = len(encoder["class_token"])
    p = round((len(encoder["patch_embed"]["kernel"]) / 3) ** 0.5)
    assert found["patch_embed.proj.weight"].shape == (width, 3, p, p)
    kernel = encoder["patch_embed"]["kernel"].reshape(p, p, 3, width)
    assert found["patch_embed.proj.weight"][1, 2, 0, 3] == kernel[0, 3, 2, 1]
    block = encoder["blocks"]["scan"]
    qkv = block["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(found["blocks.1.attn.qkv.weight"], qkv[1].T)
    np.testing.assert_array_equal(found["blocks.0.norm2.weight"], block["norm2"]["scale"][0])
    assert (metadata["gelu"], metadata["pixel_range"]) == ("tanh", "half")
    import_weights(tmp_path / "file", "timm", tmp_path / "back")
    config = json.loads((tmp_path / "back" / "config.json").read_text())["experiment"]["encoder"]
    assert (config["gelu"], config["pixel_range"]) == ("tanh", "half")


@pytest.mark.parametrize(
    ("field", "target"),
    [
        ("relative_position='shared'", "timm"),
        ("relative_position='shared'", "huggingface"),
        ("class_token=False", "huggingface"),
        ("layer_scale=0.1", "big_vision"),
        ("registers=2", "big_vision"),
    ],
)
def test_parts_that_a_plain_vit_lacks(field: str, target: Any, tmp_path: Path) -> None:
    run = run_of("mae", tmp_path, f"encoder.{field}")
    with pytest.raises(schema.UserError, match=f"has encoder.{field}. Expected a plain ViT"):
        export_weights(run, target, tmp_path / "file")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("fields", [RECTANGLE[:1], ("encoder.patch_size=(8, 4)",)])
@pytest.mark.parametrize("registers", [0, 2])
def test_rectangles_that_transformers_lacks(
    fields: tuple[str, ...], registers: int, tmp_path: Path
) -> None:
    run = run_of("mae", tmp_path, *fields, f"encoder.registers={registers}")
    name = "Dinov2WithRegistersModel" if registers else "ViTMAEForPreTraining"
    with pytest.raises(schema.UserError, match=f"but {name} of transformers reads squares. Use"):
        export_weights(run, "huggingface", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = run_of("finetune", tmp_path, "objective.pooling='mean'", classes=CLASSES)
    (tmp_path / "there").write_text("mine")
    for target, source, file, said in (
        ("timm", run, "there", "exists. Expected a new file"),
        ("huggingface", run, "there", "exists. Expected a new folder"),
        ("huggingface", run, "new", "use --to timm"),
        ("big_vision", run, "new", "use --to timm"),
        ("timm", tmp_path / "nowhere", "new", "is not the workdir of a run"),
        ("tim", run, "new", "invalid choice: 'tim'"),
        ("timm", run, "there/new", "is a file, expected a folder"),
    ):
        command = ["weights", "export", "--to", target, str(source), str(tmp_path / file)]
        assert main(command) == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert shown.err.count("\n") == 1
        assert not shown.out
    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "new").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "run", "there"]
