"""What a file is, by its contents: origin, prefix, copies, grid and pixel range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy_vit import random_big_vision, random_vit
from test_import_weights import same

from occinv.models.position import sincos
from occinv.schema import UserError
from occinv.weights.checkpoint_file import Contents
from occinv.weights.grids import moco_sincos
from occinv.weights.import_report import ImportReport
from occinv.weights.import_vit import ViTOptions, read_vit
from occinv.weights.pytorch_names import as_float32

Arrays = dict[str, np.ndarray]


def found(tree: Any, origin: Any = "auto", **options: Any) -> tuple[Any, ImportReport]:
    """Returns the run in the contents of a file, and the report."""
    report = ImportReport()
    run = read_vit(Contents(tree, options.pop("metadata", {})), origin,
                   ViTOptions(**{"heads": 2} | options), report)  # fmt: skip
    return run, report


def renamed(weights: Arrays, *pairs: tuple[str, str]) -> Arrays:
    for old, new in pairs:
        weights = {key.replace(old, new): value for key, value in weights.items()}
    return weights


def prefixed(weights: Arrays, prefix: str) -> Arrays:
    return {prefix + key: value for key, value in weights.items()}


MMPRETRAIN = (
    ("patch_embed.proj.", "patch_embed.projection."), ("blocks.", "layers."), (".norm", ".ln"),
    (".mlp.fc1.", ".ffn.layers.0.0."), (".mlp.fc2.", ".ffn.layers.1."), ("norm.", "ln1."),
)  # fmt: skip
TRANSFORMERS_5 = (  # names of modules in memory
    ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
    ("cls_token", "vit.embeddings.cls_token"),
    ("pos_embed", "vit.embeddings.position_embeddings"),
    ("blocks.0.norm1", "vit.layers.0.layernorm_before"),
    ("blocks.0.norm2", "vit.layers.0.layernorm_after"),
    ("blocks.0.attn.proj", "vit.layers.0.attention.o_proj"), ("blocks.0.mlp", "vit.layers.0.mlp"),
    ("norm.", "vit.layernorm."),
)  # fmt: skip


def test_origins_are_recognized() -> None:
    plain = random_vit(np.random.default_rng(3), 8)
    other = {key: value + 1 for key, value in plain.items()}
    expected = found(plain, pixel_range="half")[0].params
    beit = {key: value for key, value in plain.items() if key != "pos_embed"}
    beit["rel_pos_bias.relative_position_bias_table"] = np.ones((12, 2), np.float32)
    mae = plain | {"pos_embed": sincos(2, 8)[None]}
    moco = plain | {"pos_embed": moco_sincos(2, 8)[None]}
    dinov2 = plain | {"mask_token": np.ones((1, 8), np.float32)}
    dinov2 |= {f"blocks.0.ls{i}.gamma": np.ones(8, np.float32) for i in (1, 2)}
    q, k = (np.split(plain[f"blocks.0.attn.qkv.{leaf}"], 3) for leaf in ("weight", "bias"))
    five = renamed(
        {key: value for key, value in plain.items() if "qkv" not in key}, *TRANSFORMERS_5
    )
    for letter, weight, bias in zip("qkv", q, k, strict=True):
        five[f"vit.layers.0.attention.{letter}_proj.weight"] = weight
        five[f"vit.layers.0.attention.{letter}_proj.bias"] = bias
    cases: dict[str, tuple[Any, str]] = {
        "mae": ({"model": mae}, "imagenet"),
        "mocov3": ({"state_dict": prefixed(plain, "module.base_encoder.")
                    | prefixed(other, "module.momentum_encoder.")}, "imagenet"),
        "mocov3 ": (moco, "imagenet"),
        "dino": ({"student": prefixed(other, "module.backbone."),
                  "teacher": prefixed(plain, "backbone.")}, "imagenet"),
        "dinov2": ({"teacher": prefixed(dinov2, "backbone.")}, "imagenet"),
        "ijepa": ({"target_encoder": prefixed(plain, "module."),
                   "encoder": prefixed(other, "module.")}, "imagenet"),
        "beit": ({"model": beit}, "half"),
        "timm": (plain, ""),
        "timm ": ({"state_dict": other, "state_dict_ema": plain}, ""),
        "mmpretrain": ({"state_dict": prefixed(renamed(plain, *MMPRETRAIN), "backbone.")}, ""),
        "huggingface": (five, ""),
    }  # fmt: skip
    for origin, (tree, pixel_range) in cases.items():
        run, report = found(tree, pixel_range=None if pixel_range else "half")
        assert f"--from {origin.strip()} (recognized)" in report.notes
        assert run.experiment.encoder.pixel_range == (pixel_range or "half")
        if origin.strip() in ("mocov3", "dino", "ijepa", "timm", "mmpretrain", "huggingface"):
            theirs = run.params["encoder"] | {"position": expected["encoder"]["position"]}
            same(theirs, expected["encoder"])
        if not pixel_range:
            with pytest.raises(UserError, match="does not say how pixels are normalized"):
                found(tree)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "encoder.", "model.", "backbone.", "teacher.backbone.", "base_encoder.",
     "_orig_mod.", "module.visual.trunk."],
)  # fmt: skip
def test_common_prefixes(prefix: str) -> None:
    plain = random_vit(np.random.default_rng(3), 8)
    run, report = found(prefixed(plain, prefix) | {"loss.center": np.ones(3)}, pixel_range="half")
    same(run.params, found(plain, pixel_range="half")[0].params)
    assert report.ignored == {"loss.center": f"not part of {prefix[:-1]}"}


def test_a_teacher_is_taken_aloud() -> None:
    plain = random_vit(np.random.default_rng(3), 8)
    other = {key: value + 1 for key, value in plain.items()}
    tree = {"student": prefixed(other, "backbone."), "teacher": prefixed(plain, "backbone.")}
    for given, weights, said in (
        (None, plain, "took teacher.backbone. (the teacher or average); take another with --prefix "
                      "student.backbone."),
        ("student", other, "took student.backbone. (the student); take another with --prefix "
                           "teacher.backbone."),
    ):  # fmt: skip
        run, report = found(tree, prefix=given)
        assert said in report.notes
        same(run.params["encoder"], found(weights, pixel_range="half")[0].params["encoder"])
    with pytest.raises(UserError, match=r"cannot be printed"):
        found({"a\x1b[31m": plain, "teacher": plain}, prefix="head")
    with pytest.raises(UserError, match=r"--prefix head has no ViT. Expected one of: student\."):
        found(tree, prefix="head")
    with pytest.raises(UserError, match=r"has 2 ViTs: left\., right\.\. Choose one by --prefix"):
        found(prefixed(plain, "left.") | prefixed(other, "right."))


def test_a_hint_never_names_the_given_origin() -> None:
    plain = random_vit(np.random.default_rng(3), 8)
    vision = random_big_vision(np.random.default_rng(1), 8, 2, 1, 2, 2)
    files = {"timm": plain, "big_vision": vision, "mmpretrain": renamed(plain, *MMPRETRAIN)}
    for origin in ("mae", "timm", "big_vision", "mmpretrain", "huggingface"):
        for tree in (*files.values(), {"x": np.ones(1)}):
            try:
                found(tree, origin, pixel_range="half", heads=None)
            except UserError as error:
                assert f"Use --from {origin}." not in str(error)
                assert f"use --from {origin}" not in str(error)
    with pytest.raises(UserError, match="norm before the blocks"):
        found({"visual.conv1.weight": q_like(), "visual.transformer.resblocks.0.x": q_like()})


def q_like() -> np.ndarray:
    return np.ones((2, 2), np.float32)


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64"])
def test_weights_that_are_not_floats_are_refused(dtype: str) -> None:
    """Integers are quantized weights, whose scales are elsewhere."""
    with pytest.raises(UserError, match=f"weight has dtype {dtype}. Expected float numbers"):
        as_float32(np.ones(3, dtype), "weight", ImportReport())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    weights = random_vit(np.random.default_rng(3), 8)
    weights["blocks.0.mlp.fc1.weight"][3, 2] = value
    weights["norm.bias"][1] = value
    with pytest.raises(UserError, match=r"blocks.0.mlp.fc1.weight has 1 numbers that are not"):
        found(weights, pixel_range="half")
    large = weights | {"blocks.0.mlp.fc1.weight": np.full((32, 8), 1e300)}
    with pytest.raises(UserError, match="has 256 numbers that are not finite"):
        found(large, pixel_range="half")


def test_grids() -> None:
    for rows, grid, expected in (
        (26, None, 5), (25, (5, 5), 5), (26, (5, 5), 5), (197, None, 14), (196, (14, 14), 14)
    ):  # fmt: skip
        weights = random_vit(np.random.default_rng(3), 8)
        weights["pos_embed"] = np.random.default_rng(4).normal(size=(1, rows, 8))
        run, _ = found(weights, "timm", grid=grid, pixel_range="half")
        assert run.experiment.data.image_size == 2 * expected
        position = run.params["encoder"]["position"]
        np.testing.assert_allclose(position[-1], weights["pos_embed"][0, -1], rtol=1e-6)
        assert position[0].any() == (rows == expected**2 + 1)
    weights = random_vit(np.random.default_rng(3), 8) | {"pos_embed": np.ones((1, 25, 8))}
    for metadata, grid in (({}, (4, 6)), ({"image_size": "8x12"}, None)):
        run, _ = found(weights, "timm", grid=grid, metadata=metadata, pixel_range="half")
        assert run.experiment.data.image_size == (8, 12)
    # An official class token always has a row.
    with pytest.raises(UserError, match=r"25 positions, which may be a grid of 4x6"):
        found(weights, "mae")


def test_registers_with_rows_of_positions() -> None:
    """Tests that timm's rows of class token and registers are added to the tokens."""
    weights = random_vit(np.random.default_rng(3), 8)
    draw = np.random.default_rng(4)
    weights["reg_token"] = draw.normal(size=(1, 2, 8)).astype(np.float32)
    weights["pos_embed"] = draw.normal(size=(1, 3 + 16, 8)).astype(np.float32)
    encoder = found(weights, "timm", grid=(4, 4), pixel_range="half")[0].params["encoder"]
    rows = weights["pos_embed"][0]
    np.testing.assert_allclose(encoder["registers"], weights["reg_token"][0] + rows[1:3])
    np.testing.assert_array_equal(encoder["position"], np.delete(rows, (1, 2), axis=0))
    # Without a class token, and one register.
    del weights["cls_token"]
    weights |= {"reg_token": weights["reg_token"][:, :1], "pos_embed": weights["pos_embed"][:, 2:]}
    encoder = found(weights, "timm", grid=(4, 4), pixel_range="half")[0].params["encoder"]
    np.testing.assert_allclose(encoder["registers"], weights["reg_token"][0] + rows[2:3])
    np.testing.assert_array_equal(encoder["position"][1:], rows[3:])


@pytest.mark.parametrize(
    "name",
    ["cls_token", "pos_embed", "reg_token", "register_tokens", "mask_token", "head.weight",
     "decoder_embed.weight", "rel_pos_bias.relative_position_bias_table", "patch_embed.proj.weight",
     "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma", "norm.weight", "fc_norm.weight"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 0, 8), (2, 2, 2, 2, 2)])
def test_a_shape_of_another_kind_is_refused(name: str, shape: tuple[int, ...]) -> None:
    weights = random_vit(np.random.default_rng(3), 8) | {name: np.ones(shape, np.float32)}
    if "table" in name:
        del weights["pos_embed"]
    try:
        found(weights, "timm", pixel_range="half")
    except UserError as error:
        assert "\n" not in str(error)
    else:  # parts after the encoder, and registers that are none
        assert name in ("head.weight", "fc_norm.weight", "mask_token") or shape == (1, 0, 8)
