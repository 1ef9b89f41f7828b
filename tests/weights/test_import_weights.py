"""Imported checkpoints of each origin have the features and logits of the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_vit import big_vision, official, random_big_vision, random_vit
from safetensors.numpy import save_file
from torch_writer import write_legacy, write_zip

from occinv import load_encoder
from occinv.cli import main
from occinv.evaluate import evaluate
from occinv.objectives import forward
from occinv.schema import UserError
from occinv.train import workdir
from occinv.transforms.masking import kept_patches, lowest
from occinv.transforms.view import View, denormalize, whole
from occinv.weights.grids import big_vision_sincos, moco_sincos
from occinv.weights.import_report import grouped
from occinv.weights.import_weights import import_weights

Arrays = dict[str, np.ndarray]


def group(file: Any, prefix: str) -> Arrays:
    return {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}


@pytest.fixture(scope="module")
def files(reference: Path) -> Callable[[str], Any]:
    """Returns a function that opens reference arrays by name."""
    return lambda name: np.load(reference / f"{name}.npz")


def sizes(file: Any) -> Any:
    return json.loads(str(file["config"]))


@pytest.fixture(scope="module")
def images(files: Any) -> np.ndarray:
    size = sizes(files("mae_pretrain"))["img_size"]
    return np.random.default_rng(0).random((2, size, size, 3), np.float32)


@pytest.fixture(scope="module")
def heads(files: Any) -> int:
    return int(sizes(files("mae_pretrain"))["num_heads"])


@pytest.fixture(scope="module")
def timm(files: Any) -> Arrays:
    """Returns an encoder by timm's names, without a head."""
    weights = group(files("vit_classifier"), "cls_state/")
    return {k: v for k, v in weights.items() if not k.startswith("head")}


def same(tree: Any, other: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), tree, other)


# Features and logits


def test_mae_with_its_decoder(files: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = files("mae_pretrain")
    config = sizes(file)
    write_zip(tmp_path / "mae.pth", {"model": group(file, "state/"), "epoch": 3})
    arguments = ["--heads", str(config["num_heads"])]
    arguments += ["--decoder-heads", str(config["decoder_num_heads"])]
    source = ["weights", "import", "--from", "mae", str(tmp_path / "mae.pth")]
    assert main([*source, "--to", str(tmp_path / "run"), *arguments]) == 0
    shown = capsys.readouterr().out
    last = config["depth"] - 1
    for line in (f"blocks.0…{last}.attn.qkv.weight", "    epoch", "missing: nothing"):
        assert line in shown.splitlines() or f"  {line}" in shown.splitlines()

    trained = workdir.load_run(tmp_path / "run")
    assert trained.experiment.objective["name"] == "mae"
    noise = file["noise"][0]
    visible = lowest(jnp.asarray(noise), kept := kept_patches(noise.shape[1], 0.75))
    view = View(denormalize(jnp.asarray(file["images"])), visible, kept)

    @jax.jit
    def forward(params: Any, view: View) -> tuple[jax.Array, jax.Array]:
        net = trained.objective.networks.bind({"params": params})
        z = net.encode(view)
        return z.tokens, net.decode(z, view)

    tokens, predicted = forward(trained.params, view)
    rank = np.argsort(np.argsort(file["noise"][0], 1)[:, :kept], 1)  # theirs are in this order
    theirs = np.take_along_axis(file["latent"][:, 1:], rank[..., None], 1)
    np.testing.assert_allclose(tokens[:, 1:], theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predicted, file["pred"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("pooling", "prefix"), [("mean", ""), ("class", "cls_")])
def test_classifier(files: Any, heads: int, pooling: str, prefix: str, tmp_path: Path) -> None:
    file = files("vit_classifier")
    path = write_zip(tmp_path / "file", {"model": group(file, prefix + "state/")})
    import_weights(path, "mae", tmp_path / "run", heads=heads)
    trained = workdir.load_run(tmp_path / "run")
    assert trained.objective.pooling == pooling
    assert trained.classes == tuple(map(str, range(file["logits"].shape[1])))
    encoder = trained.objective.networks.encoder
    view = whole(denormalize(jnp.asarray(file["images"])), encoder.num_patches)

    @jax.jit
    def classify(params: Any, view: View) -> jax.Array:
        net = trained.objective.networks.bind({"params": params})
        return net.head(net.encode(view).tokens)

    logits = classify(trained.params, view)
    np.testing.assert_allclose(logits, file[prefix + "logits"], rtol=1e-4, atol=1e-5)


def check_features(run: Path, weights: Arrays, heads: int, images: np.ndarray) -> None:
    found = load_encoder(run).features(images)
    np.testing.assert_allclose(found, official(weights, images, heads), rtol=2e-4, atol=2e-5)


def test_mocov3_takes_the_base_encoder(
    files: Any, heads: int, images: np.ndarray, tmp_path: Path
) -> None:
    state = group(files("mocov3"), "state/")
    path = write_zip(tmp_path / "a", {"state_dict": {f"module.{k}": v for k, v in state.items()}})
    listing = import_weights(path, "mocov3", tmp_path / "run", heads=heads)
    own = {k.removeprefix("base_encoder."): v for k, v in state.items() if k.startswith("base")}
    check_features(tmp_path / "run", own, heads, images)
    ignored = set(listing.ignored)
    assert {"module.momentum_encoder.cls_token", "module.predictor.0.weight"} <= ignored
    assert "module.base_encoder.head.0.weight" in ignored
    assert ignored | set(listing.used) == {f"module.{k}" for k in state}
    # Converted files have no prefix and may lack the position embedding, which is fixed.
    plain = {k: v for k, v in own.items() if not k.startswith("head") and k != "pos_embed"}
    metadata = {"image_size": str(images.shape[1])}
    save_file(plain, tmp_path / "b", metadata)
    listing = import_weights(tmp_path / "b", "mocov3", tmp_path / "plain", heads=heads)
    assert set(listing.missing) == {"pos_embed"}
    trained, other = (workdir.load_run(tmp_path / name).params for name in ("plain", "run"))
    position = trained["encoder"].pop("position")
    np.testing.assert_allclose(position, other["encoder"].pop("position"), atol=2e-6)
    same(trained, other)


def test_dino_takes_the_teacher(files: Any, heads: int, images: np.ndarray, tmp_path: Path) -> None:
    file = files("dino")
    student = {f"module.{k}": v for k, v in group(file, "student/").items()}
    teacher = group(file, "teacher/")
    path = write_zip(tmp_path / "a", {"student": student, "teacher": teacher, "epoch": 1})
    listing = import_weights(path, "dino", tmp_path / "run", heads=heads)
    own = {k.removeprefix("backbone."): v for k, v in teacher.items() if k.startswith("backbone")}
    check_features(tmp_path / "run", own, heads, images)
    assert {"student", "epoch", "head.last_layer.weight_v"} <= set(listing.ignored)
    write_zip(tmp_path / "b", own)
    import_weights(tmp_path / "b", "dino", tmp_path / "plain", heads=heads)
    same(workdir.load_run(tmp_path / "plain").params, workdir.load_run(tmp_path / "run").params)


@pytest.fixture(scope="module")
def vision(files: Any) -> Arrays:
    """Returns an encoder by big_vision's names."""
    config = sizes(files("mae_pretrain"))
    side = config["img_size"] // config["patch_size"]
    draw = np.random.default_rng(1)
    return random_big_vision(draw, config["embed_dim"], 3, 2, config["patch_size"], side)


def test_big_vision(vision: Arrays, images: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{f"params/{k}": v for k, v in vision.items()}, other=np.ones(1))
    listing = import_weights(tmp_path / "a.npz", "big_vision", tmp_path / "run")
    encoder = load_encoder(tmp_path / "run")
    assert (encoder.encoder.heads, encoder.encoder.gelu) == (3, "tanh")
    assert encoder.encoder.pixel_range == "half"
    expected = big_vision(vision, images)
    np.testing.assert_allclose(encoder.features(images), expected, rtol=5e-4, atol=5e-4)
    assert set(listing.ignored) == {"other"}
    assert listing.missing == {"the class token's row of pos_embed": "zeros"}


def test_two_names_of_one_parameter_are_refused(vision: Arrays, tmp_path: Path) -> None:
    again = {"Transformer/pos_embedding": vision["pos_embedding"]}
    np.savez(tmp_path / "file", **vision, **again)
    with pytest.raises(UserError, match="are the same parameter"):
        import_weights(tmp_path / "file.npz", "big_vision", tmp_path / "run")


def test_the_other_names_of_big_vision(vision: Arrays, tmp_path: Path) -> None:
    """Tests the names before Flax Linen, and blocks stacked for a scan."""
    older = {}
    for key, value in vision.items():
        key = key.replace("LayerNorm_1/", "LayerNorm_2/").replace("MlpBlock_0", "MlpBlock_3")
        key = key.replace("MultiHeadDotProductAttention_0", "MultiHeadDotProductAttention_1")
        older["opt/target/" + key] = value
    position = older.pop("opt/target/pos_embedding")
    older["opt/target/Transformer/posembed_input/pos_embedding"] = position
    np.savez(tmp_path / "older.npz", **older)
    stacked = {k: v for k, v in vision.items() if "encoderblock" not in k}
    for key in [k for k in vision if "encoderblock_0" in k]:
        both = [vision[key], vision[key.replace("block_0/", "block_1/")]]
        stacked[key.replace("block_0/", "block/")] = np.stack(both)
    np.savez(tmp_path / "stacked.npz", **stacked)
    np.savez(tmp_path / "plain.npz", **vision)
    trees = []
    for name in ("plain", "older", "stacked"):
        import_weights(tmp_path / f"{name}.npz", "big_vision", tmp_path / name)
        trees.append(workdir.load_run(tmp_path / name).params)
        assert load_encoder(tmp_path / name).encoder.heads == 3
    same(trees[0], trees[1])
    same(trees[0], trees[2])


# File formats, and other names and layouts of the same parameters


def imported(weights: Arrays, tmp_path: Path, name: str, heads: int, **how: Any) -> Any:
    path = write_zip(tmp_path / f"{name}.pth", weights)
    how["listing"] = import_weights(
        path, "timm", tmp_path / name, heads=heads, pixel_range="imagenet"
    )
    return workdir.load_run(tmp_path / name), how["listing"]


def test_every_file_format_gives_the_same(timm: Arrays, heads: int, tmp_path: Path) -> None:
    write_zip(tmp_path / "zip", {"state_dict": timm})
    write_legacy(tmp_path / "legacy", timm)
    save_file(timm, tmp_path / "tensors")
    np.savez(tmp_path / "npz", **timm)
    (tmp_path / "npz.npz").rename(tmp_path / "npz")
    trees = []
    for name in ("zip", "legacy", "tensors", "npz"):
        import_weights(tmp_path / name, "timm", tmp_path / f"{name}-run", heads=heads,
                       pixel_range="imagenet")  # fmt: skip
        trees.append(workdir.load_run(tmp_path / f"{name}-run").params)
    for tree in trees[1:]:
        same(trees[0], tree)


def test_separate_queries_keys_and_values(timm: Arrays, heads: int, tmp_path: Path) -> None:
    fused, _ = imported(timm, tmp_path, "fused", heads)
    for pattern in ("attn.{}.", "attn.{}_proj."):
        apart = dict(timm)
        for key in [k for k in timm if "attn.qkv." in k]:
            for letter, part in zip("qkv", np.split(apart.pop(key), 3), strict=True):
                apart[key.replace("attn.qkv.", pattern.format(letter))] = part
        trained, listing = imported(apart, tmp_path, pattern.replace("{}", "x"), heads)
        same(trained.params, fused.params)
        assert sorted(listing.used) == sorted(apart)
        assert not listing.missing


def test_missing_biases(timm: Arrays, heads: int, tmp_path: Path) -> None:
    beit, none = dict(timm), {k: v for k, v in timm.items() if not k.endswith("qkv.bias")}
    for key in [k for k in timm if k.endswith("qkv.bias")]:
        q, _, v = np.split(beit.pop(key), 3)
        beit |= {key.replace("qkv.bias", "q_bias"): q, key.replace("qkv.bias", "v_bias"): v}
    full, _ = imported(timm, tmp_path, "full", heads)
    expected = full.params["encoder"]["blocks"]["scan"]["attention"]["qkv"]["bias"].copy()
    keys = slice(expected.shape[1] // 3, 2 * expected.shape[1] // 3)
    expected[:, keys] = 0
    for name, weights, bias in (("beit", beit, expected), ("none", none, 0 * expected)):
        trained, listing = imported(weights, tmp_path, name, heads)
        found = trained.params["encoder"]["blocks"]["scan"]["attention"]["qkv"]["bias"]
        np.testing.assert_array_equal(found, bias)
        assert listing.missing["blocks.0.attn.k_bias"] == "zeros"


# Sizes, positions, objectives


def test_fixed_positions(files: Any) -> None:
    stored = files("mocov3")["state/base_encoder.pos_embed"][0]
    side, width = round((len(stored) - 1) ** 0.5), stored.shape[1]
    np.testing.assert_allclose(moco_sincos(side, width), stored, atol=2e-6)
    found = big_vision_sincos(side, width)
    for row, column in ((0, 0), (2, 5)):
        for index in range(width // 4):
            omega = 10000.0 ** -(index / (width // 4 - 1))
            values = [np.sin(column * omega), np.cos(column * omega)]
            values += [np.sin(row * omega), np.cos(row * omega)]
            place = found[1 + row * side + column, index :: width // 4]
            np.testing.assert_allclose(place, values, atol=1e-6)
    assert not found[0].any()


def test_number_of_heads(heads: int, tmp_path: Path) -> None:
    def refuse(weights: Arrays, **how: Any) -> str:
        save_file(weights, tmp_path / "file", how.pop("metadata", None))
        how["pixel_range"] = "half"
        with pytest.raises(UserError) as caught:
            import_weights(tmp_path / "file", how.pop("origin", "timm"), tmp_path / "run", **how)
        return str(caught.value)

    draw = np.random.default_rng(2)
    odd = random_vit(draw, 40)
    assert "--heads" in refuse(odd)
    assert "encoder.heads=7" in refuse(odd, heads=7)
    assert "--heads 0 is too small. Expected 1 or more" in refuse(odd, heads=0)
    assert "the file says 8" in refuse(odd, heads=5, metadata={"heads": "8"})
    assert "heads='many'" in refuse(odd, metadata={"heads": "many"})
    for width, origin, expected in ((384, "timm", 6), (384, "mocov3", 12), (128, "timm", 2)):
        save_file(random_vit(draw, width), tmp_path / "file")
        run = tmp_path / f"{origin}{width}"
        listing = import_weights(tmp_path / "file", origin, run, pixel_range="imagenet")
        assert workdir.load_run(run).experiment.encoder.heads == expected
        assert any(f"encoder.heads: {expected} (usual" in note for note in listing.notes)


REFUSED = {
    "a distillation token (dist_token)": {"dist_token": (1, 1, 8)},
    "SwiGLU MLPs (blocks.0.mlp.w12.weight)": {"blocks.0.mlp.w12.weight": (8, 8)},
    "blocks.0.ls2.gamma is missing": {"blocks.0.ls1.gamma": (8,)},
    "absolute and relative positions": {"blocks.0.attn.relative_position_bias_table": (12, 2)},
    "decomposed relative positions": {"blocks.0.attn.rel_pos_h": (9, 2)},
    "norms of queries and keys": {"blocks.0.attn.q_norm.weight": (4,)},
    "1 unknown keys: stem.weight": {"stem.weight": (4,)},
    "Expected them from 0, without gaps": {"blocks.2.norm1.weight": (8,)},
    "blocks.1.norm1.bias is missing": {"blocks.1.norm1.weight": (8,)},
    "7 positions, which may be a grid of 2x3, 1x6, 1x7": {"pos_embed": (1, 7, 8)},
    "25 positions, which may be a grid of 5x5, 4x6, 3x8, 2x12": {"pos_embed": (1, 25, 8)},
    "Expected [32, 8], as in a plain ViT with MLPs 4 times": {"blocks.0.mlp.fc1.weight": (16, 8)},
    "Expected [width, channels, height, width of": {"patch_embed.proj.weight": (8, 3, 4)},
    "shape [1, 1, 9] as cls_token in PyTorch's layout. Expected [1, 1, 8]": {
        "cls_token": (1, 1, 9)
    },
}


@pytest.mark.parametrize("said", REFUSED)
def test_another_vit_is_refused(said: str, tmp_path: Path) -> None:
    weights = random_vit(np.random.default_rng(3), 8)
    weights |= {name: np.ones(shape, np.float32) for name, shape in REFUSED[said].items()}
    save_file(weights, tmp_path / "file")
    with pytest.raises(UserError) as caught:
        import_weights(tmp_path / "file", "timm", tmp_path / "run", heads=2, pixel_range="half")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_key_of_two_lines_is_refused(tmp_path: Path) -> None:
    save_file({"a\nb": np.ones(1, np.float32)}, tmp_path / "file")
    with pytest.raises(UserError, match=r"the key 'a\\nb' cannot be printed"):
        import_weights(tmp_path / "file", "timm", tmp_path / "run")


def test_an_encoder_without_a_loss(timm: Arrays, heads: int, tmp_path: Path) -> None:
    trained, _ = imported(timm, tmp_path, "run", heads)
    assert trained.experiment.objective["name"] == "occinv.weights.encoder_only:EncoderOnly"
    with pytest.raises(UserError, match="init_from"):
        forward.init(trained.objective, jax.random.key(0))
    run = str(tmp_path / "run")
    for measure in ("psnr", "reconstructions"):  # no images are needed to fail
        assert main(["evaluate", measure, "--workdir", run]) == 2
    options = {"source": "photos", "num_images": 8, "ratios": (0.5,), "batch_size": 8}
    (found,) = evaluate("invariance", [run], untrained=0, **options)
    assert np.isfinite(found.record.details["cka"]["class"]).all()


def test_the_pixel_range_can_be_given(timm: Arrays, heads: int, tmp_path: Path) -> None:
    write_zip(tmp_path / "file", timm)
    import_weights(tmp_path / "file", "timm", tmp_path / "run", heads=heads, pixel_range="half")
    assert workdir.load_run(tmp_path / "run").experiment.encoder.pixel_range == "half"


def test_grouped_names() -> None:
    names = [f"blocks.{i}.norm1.bias" for i in (0, 1, 2, 5)] + ["a", "encoderblock_0/x"]
    assert grouped(names) == ["blocks.0…2,5.norm1.bias", "a", "encoderblock_0/x"]


# A refused import writes nothing


def test_a_failure_while_writing_leaves_nothing(
    timm: Arrays, heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "file", timm)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("occinv.train.checkpoints.Checkpoints.save", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        import_weights(path, "timm", tmp_path / "run", heads=heads, pixel_range="half")
    assert list(tmp_path.iterdir()) == [path]


def test_a_mistake_is_one_line_and_leaves_nothing(
    timm: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good = write_zip(tmp_path / "good", timm)
    save_file(timm, tmp_path / "good2", {"heads": "2"})
    (tmp_path / "text").write_text("not weights")
    (tmp_path / "empty").touch()
    (tmp_path / "cut").write_bytes(good.read_bytes()[:-5000])
    write_zip(tmp_path / "code", b"cposix\nsystem\n.", {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    run = tmp_path / "run"
    for path, to, said in (
        (tmp_path / "text", run, "Expected a PyTorch checkpoint"),
        (tmp_path / "empty", run, "is empty"),
        (tmp_path / "cut", run, "damaged"),
        (tmp_path / "code", run, "contains code: posix.system"),
        (tmp_path / "nowhere", run, "does not exist"),
        (tmp_path / "full", run, "has no model.safetensors, pytorch_model.bin, "),
        (good, run, "--heads"),
        (good, tmp_path / "full", "is not empty. Expected a new folder"),
        (good, tmp_path / "text", "is a file, expected a folder"),
        (tmp_path / "good2", tmp_path / "link" / "run", "is a link to a missing folder"),
    ):
        command = ["weights", "import", "--from", "timm", str(path), "--to", str(to)]
        command += ["--pixel-range", "half"]
        assert main(command) == 2
        shown = capsys.readouterr()
        assert not shown.out
        assert shown.err.count("\n") == 1
        assert said in shown.err
        assert sorted(tmp_path.rglob("*")) == before
