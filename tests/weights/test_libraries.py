"""Models of timm and transformers, recorded by with_libraries.py: import, features and export.

The libraries wrote the recorded files, and computed the outputs. An export whose arrays and fields
are those of the recorded file is one that the library loads.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from occinv.schema import UserError
from occinv.train import workdir
from occinv.transforms.view import View, whole
from occinv.weights.checkpoint_file import read_checkpoint
from occinv.weights.export_weights import export_weights
from occinv.weights.import_report import ImportReport
from occinv.weights.import_vit import ViTOptions, read_vit
from occinv.weights.import_weights import import_weights

# The fields of each model's encoder that are not the default.
MODELS: dict[str, dict[str, Any]] = {
    "hf_vit": {"pixel_range": "half"},
    "hf_vit_mae": {},
    "hf_dinov2": {"layer_scale": 1.0, "gelu": "tanh"},
    "hf_dinov2_registers": {"layer_scale": 1.0, "registers": 2},
    "hf_beit": {"layer_scale": 1.0, "relative_position": "block", "pixel_range": "half"},
    "hf_ijepa": {"class_token": False},
    "timm_vit": {"pixel_range": "half"},
    "timm_registers": {"layer_scale": 1.0, "registers": 2},
    "timm_without_class_token": {"layer_scale": 1.0, "class_token": False, "pixel_range": "half"},
}
FIELDS = ("layer_scale", "relative_position", "registers", "class_token", "gelu", "pixel_range")


@pytest.fixture(scope="module")
def libraries() -> Path:
    return Path(__file__).resolve().parent.parent / "reference" / "libraries"


@pytest.fixture(scope="module")
def runs(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a function that imports a model once and returns its workdir."""

    @functools.cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        import_weights(libraries / name, "auto", folder / "run")
        return folder / "run"

    return run


@functools.partial(jax.jit, static_argnames="objective")
def outputs(objective: Any, params: Any, view: View) -> dict[str, jax.Array]:
    net = objective.networks.bind({"params": params})
    found = {"tokens": net.encode(whole(view.pixels, view.visible.shape[1])).tokens}
    if "head" in params:
        found["logits"] = net.head(found["tokens"])
    if "decoder" in params:
        found["predicted"] = net.decode(net.encode(view), view)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_the_outputs_are_those_of_the_library(name: str, libraries: Path, runs: Any) -> None:
    trained = workdir.load_run(runs(name))
    encoder = trained.experiment.encoder
    for field in FIELDS:
        default = getattr(type(encoder)(), field)
        assert getattr(encoder, field) == MODELS[name].get(field, default), field
    recorded = dict(np.load(libraries / name / "output.npz"))
    pixels = jnp.asarray(recorded.pop("images") / np.float32(255))
    visible = jnp.broadcast_to(jnp.arange(16) < 4, (2, 16))
    found = dict(outputs(trained.objective, trained.params, View(pixels, visible, 4)))
    if not encoder.class_token:
        mean = found["tokens"][:, 1:].mean(1)
        np.testing.assert_allclose(found["tokens"][:, 0], mean, rtol=1e-5, atol=1e-5)
    # Registers are in the library's features, not in ours.
    first = int(encoder.class_token)
    kept = np.r_[:first, first + encoder.registers : recorded["tokens"].shape[1]]
    recorded["tokens"] = recorded["tokens"][:, kept]
    found["tokens"] = found["tokens"][:, 1 - first :]
    assert set(found) == set(recorded)
    for key, value in recorded.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("hf_beit", "hf_ijepa")])
def test_an_export_is_the_file_of_the_library(
    name: str, libraries: Path, runs: Any, tmp_path: Path
) -> None:
    theirs = load_file(libraries / name / "model.safetensors")
    if name.startswith("timm"):
        export_weights(runs(name), "timm", tmp_path / "model.safetensors")
        ours = load_file(tmp_path / "model.safetensors")
    else:
        said = export_weights(runs(name), "huggingface", tmp_path / "out")
        ours = load_file(tmp_path / "out" / "model.safetensors")
        configs = {}
        for file in ("config.json", "preprocessor_config.json"):
            written = json.loads((tmp_path / "out" / file).read_text())
            stated = json.loads((libraries / name / file).read_text())
            for field in set(written) & set(stated) - {
                "id2label",
                "label2id",
                "hidden_act",
                "resample",
            }:
                assert written[field] == stated[field], field
            configs[file] = set(stated) - set(written)
        assert not configs["preprocessor_config.json"]
        defaults = {"dtype", "transformers_version", "encoder_stride", "initializer_range"}
        assert not configs["config.json"] - defaults - DEFAULTS
        model = json.loads((tmp_path / "out" / "config.json").read_text())
        assert f"transformers.{model['architectures'][0]}.from_pretrained" in said
        assert (model["hidden_act"] == "gelu") == (MODELS[name].get("gelu", "erf") == "erf")
    # transformers 5 loads the names of transformers 4, too, but writes others.
    names = {n.replace("decoder_encoder.layer", "decoder_layers"): n for n in theirs}
    assert set(ours) == set(names)
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[names[key]], err_msg=key, strict=True)


# Fields that transformers writes, but which do not change what a model computes, or have defaults.
DEFAULTS = {
    *("pooler_act", "pooler_output_size", "id2label", "label2id", "apply_layernorm"),
    *("layerscale_value", "out_features", "out_indices", "reshape_hidden_states", "stage_names"),
    *("use_mask_token",),
}


# Files that PyTorch wrote


def read(path: Path, origin: Any = "timm", **options: Any) -> tuple[dict[str, Any], ImportReport]:
    report = ImportReport()
    options = {"heads": 2, "pixel_range": "imagenet"} | options
    run = read_vit(read_checkpoint(path), origin, ViTOptions(**options), report)
    return run.params["encoder"], report


@pytest.mark.parametrize("name", ["zip", "legacy", "float32", "bfloat16", "float16", "float64"])
def test_files_of_pytorch(name: str, libraries: Path) -> None:
    """Reads what training scripts save: arguments, optimizer, views, ordered dicts, parameters."""
    state = load_file(libraries / "torch" / "state.safetensors")
    encoder, report = read(libraries / "torch" / f"{name}.pth")
    wrapped = name in ("zip", "legacy")
    assert set(report.ignored) == ({"optimizer", "args", "scaler", "dtype"} if wrapped else set())
    tolerance = {"bfloat16": 2**-8, "float16": 2**-10}.get(name, 0)
    qkv = encoder["blocks"]["scan"]["attention"]["qkv"]["kernel"][0]
    for found, key in ((qkv.T, "blocks.0.attn.qkv.weight"), (encoder["position"], "pos_embed")):
        np.testing.assert_allclose(found, state[key].reshape(found.shape), rtol=tolerance)


def test_a_config_beside_the_file_is_read(libraries: Path, tmp_path: Path) -> None:
    folder = libraries / "timm_vit"
    copy = tmp_path / "other.safetensors"
    copy.write_bytes((folder / "model.safetensors").read_bytes())
    _, report = read(folder / "model.safetensors", "auto", heads=None, pixel_range=None)
    assert "encoder.pixel_range: half (from the file)" in report.notes
    assert "encoder.heads: 3 (from the file)" in report.notes
    with pytest.raises(UserError, match=r"does not say how pixels are normalized. Pass"):
        read(copy, "auto", heads=3, pixel_range=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "quick_gelu"}, "the activation 'quick_gelu'"),
        ({"use_swiglu_ffn": True}, "SwiGLU MLPs"),
        (
            {"image_size": [16, 32]},
            "has 17 positions, which are 16 patches. Expected the 32 patches",
        ),
        ({"image_size": 18}, "image_size 18x18 is not divisible"),
        ({"image_size": 20}, "has 17 positions, which are 16 patches. Expected the 25 patches"),
    ],
)
def test_a_config_of_another_model_is_refused(
    change: dict[str, Any], said: str, libraries: Path, tmp_path: Path
) -> None:
    folder = libraries / "hf_vit"
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        read(tmp_path, "auto", heads=None)
    assert said in str(caught.value)


def test_a_preprocessor_of_another_range(libraries: Path, tmp_path: Path) -> None:
    folder = libraries / "hf_vit"
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match=r"Pass --pixel-range imagenet"):
        read(tmp_path, "auto", heads=None, pixel_range=None)
    for mean, std in (([0.48, 0.46, 0.41], [0.5, 0.5, 0.5]), ([0.5, 0.5, 0.5], [0.23, 0.22, 0.22])):
        stated = json.dumps({"image_mean": mean, "image_std": std})
        (tmp_path / "preprocessor_config.json").write_text(stated)
        with pytest.raises(UserError, match=re.escape(f"mean {mean} and standard deviation {std}")):
            read(tmp_path, "auto", heads=None, pixel_range=None)


def test_the_image_size_of_timm(libraries: Path, tmp_path: Path) -> None:
    folder = libraries / "timm_vit"
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    del config["model_args"]["img_size"]
    config["pretrained_cfg"]["input_size"] = [3, 8, 32]
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, report = read(tmp_path, "auto", heads=None)
    assert any("images of 8 × 32;" in note for note in report.notes)
