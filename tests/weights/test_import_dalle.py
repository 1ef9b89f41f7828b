"""DALL·E's encoder, imported from a file like the published one, against NumPy convolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from torch_writer import Opcodes, opcodes, pickled, tensors, write_legacy, write_zip

from occinv.cli import main
from occinv.models.tokenizers.base import make_tokenizer
from occinv.models.tokenizers.dalle import DalleEncoder
from occinv.objectives.base import make_objective
from occinv.schema import UserError
from occinv.train import workdir
from occinv.weights.import_dalle import pytorch_name
from occinv.weights.import_weights import import_weights

HIDDEN, NUM_IDS, SIDE = 8, 24, 2
SECTION = {"name": "dalle", "num_ids": NUM_IDS, "hidden": HIDDEN}


def weights() -> dict[str, np.ndarray]:
    """Returns every parameter by its published name, in PyTorch's layout."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}

    def conv(name: str, before: int, after: int, side: int) -> None:
        deviation = (before * side**2) ** -0.5
        kernel = deviation * rng.standard_normal((after, before, side, side))
        found[f"blocks.{name}.w"] = kernel.astype(np.float32)
        found[f"blocks.{name}.b"] = rng.standard_normal(after).astype(np.float32) / 2

    conv("input", 3, HIDDEN, 7)
    before = HIDDEN
    for group in (1, 2, 3, 4):
        width = HIDDEN * 2 ** (group - 1)
        for block in (1, 2):
            stem = f"group_{group}.block_{block}"
            if before != width:
                conv(f"{stem}.id_path", before, width, 1)
            for number in (1, 2, 3):
                conv(f"{stem}.res_path.conv_{number}", before, width // 4, 3)
                before = width // 4
            conv(f"{stem}.res_path.conv_4", before, width, 1)
            before = width
    conv("output.conv", before, NUM_IDS, 1)
    # With this bias no single id is the most likely at every position.
    usual = by_numpy(found, rng.random((64, 64, 3))).mean((0, 1)).astype(np.float32)
    found["blocks.output.conv.b"] -= usual
    return found


def by_numpy(w: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    """Returns logits [H / 8, W / 8, num_ids] of one image [H, W, 3] in [0, 1]."""

    def conv(x: np.ndarray, name: str) -> np.ndarray:
        kernel = w[f"blocks.{name}.w"].astype(float)
        side = kernel.shape[2]
        around = np.pad(x, ((side // 2, side // 2), (side // 2, side // 2), (0, 0)))
        height, width = x.shape[:2]
        total = np.zeros((height, width, len(kernel))) + w[f"blocks.{name}.b"]
        for i in range(side):
            for j in range(side):
                total += around[i : i + height, j : j + width] @ kernel[:, :, i, j].T
        return total

    def relu(x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)

    x = conv(0.1 + 0.8 * image.astype(float), "input")
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            stem = f"group_{group}.block_{block}"
            y = x
            for number in (1, 2, 3, 4):
                y = conv(relu(y), f"{stem}.res_path.conv_{number}")
            kept = conv(x, f"{stem}.id_path") if f"blocks.{stem}.id_path.w" in w else x
            x = kept + y / 64
        if group < 4:
            height, width = x.shape[0] // 2, x.shape[1] // 2
            x = x.reshape(height, 2, width, 2, -1).max((1, 3))
    return conv(relu(x), "output.conv")


def module(kind: str, parameters: Any = (), modules: Any = (), **fields: Any) -> Opcodes:
    """Returns a module as `torch.save` pickles it: a class and its state."""
    state = {"training": 0, "_parameters": dict(parameters), "_modules": dict(modules), **fields}
    path, _, name = kind.rpartition(".")
    return Opcodes(f"c{path}\n{name}\n".encode() + b")\x81" + opcodes(state) + b"b")


CLASSES = {
    "": "dall_e.encoder.Encoder",
    "conv": "dall_e.utils.Conv2d",
    "block": "dall_e.encoder.EncoderBlock",
}
DEVICE = Opcodes(b"ctorch\ndevice\n" + opcodes(("cpu",)) + b"R")


def nested(found: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in found.items():
        *path, leaf = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[leaf] = value
    return tree


def as_modules(tree: dict[str, Any], name: str = "") -> Opcodes:
    """Returns the encoder as nested modules, including those without parameters."""
    if "w" in tree:
        return module("dall_e.utils.Conv2d", tree, n_in=3, use_float16=1, device=DEVICE)
    inside = {part: as_modules(below, part) for part, below in tree.items()}
    if name.startswith("group"):
        inside["pool"] = module("torch.nn.modules.pooling.MaxPool2d", kernel_size=2)
    if name == "res_path":
        inside["relu_1"] = module("torch.nn.modules.activation.ReLU")
    if name.startswith("block_"):
        inside.setdefault("id_path", module("torch.nn.modules.linear.Identity"))
    kind = "block" if name.startswith("block_") else "" if not name else "sequential"
    return module(CLASSES.get(kind, "torch.nn.modules.container.Sequential"), (), inside)


def published(path: Path, w: dict[str, np.ndarray]) -> Path:
    """Writes a file like encoder.pkl."""
    storages: dict[str, bytes] = {}
    return write_zip(path, pickled(as_modules(nested(tensors(w, storages)))), storages)


@pytest.fixture(scope="module")
def w() -> dict[str, np.ndarray]:
    return weights()


@pytest.fixture(scope="module")
def imported(w: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dalle")
    published(folder / "encoder.pkl", w)
    said = str(import_weights(folder / "encoder.pkl", "dalle", folder / "run"))
    assert f"used ({len(w)} keys)" in said and f"{NUM_IDS} ids, hidden {HIDDEN}" in said
    return folder / "run"


def test_logits(w: dict[str, np.ndarray], imported: Path) -> None:
    params = workdir.load_run(imported).params
    pixels = np.random.default_rng(1).random((2, 16, 24, 3)).astype(np.float32)
    found = jax.jit(DalleEncoder(HIDDEN, NUM_IDS).apply)(
        {"params": params["dalle"]}, 0.1 + 0.8 * pixels
    )
    assert found.shape == (2, 2, 3, NUM_IDS)
    for b in range(2):
        np.testing.assert_allclose(found[b], by_numpy(w, pixels[b]), rtol=1e-3, atol=1e-4)


def test_ids_of_an_image_shrunk_as_pillow_shrinks(w: dict[str, np.ndarray], imported: Path) -> None:
    """Tests 32² to 16² pixels for 2² patches; the published size is 224² to 112²."""
    rng = np.random.default_rng(2)
    coarse = rng.integers(0, 256, (6, 9, 9, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(x).resize((32, 32), 2)) for x in coarse])
    tokenizer = make_tokenizer({**SECTION, "start": str(imported)}, 32, 32 // SIDE)
    run = workdir.load_run(imported)
    params = tokenizer.obtain(lambda _: (run.experiment, run.params), lambda: iter(()))()
    found = jax.jit(tokenizer.ids)(params, images / np.float32(255))
    assert found.shape == (6, SIDE**2) and found.dtype == np.int32
    expected = []
    for image in images:
        small = Image.fromarray(image).resize((16, 16), Image.Resampling.LANCZOS)
        logits = by_numpy(w, np.asarray(small) / 255)
        expected.append(logits.argmax(-1).ravel())
    assert (found == np.stack(expected)).mean() > 0.9  # Pillow rounds to whole numbers
    assert len(np.unique(found)) > 4


def test_flat_names_and_the_older_format(
    w: dict[str, np.ndarray], imported: Path, tmp_path: Path
) -> None:
    expected = workdir.load_run(imported).params
    write_zip(tmp_path / "flat.pkl", w)
    storages: dict[str, bytes] = {}
    # Before PyTorch 1.6 the class of each module came with its source code.
    whole = pickled(as_modules(nested(tensors(w, storages))))
    source = opcodes(("module", Opcodes(b"cdall_e.encoder\nEncoder\n"), "f.py", "code")) + b"Q"
    whole = b"\x80\x02" + source + whole[2:].replace(b"cdall_e.encoder\nEncoder\n", b"", 1)
    write_legacy(tmp_path / "old.pkl", Opcodes(whole[2:-1]), storages)
    for name in ("flat", "old"):
        import_weights(tmp_path / f"{name}.pkl", "dalle", tmp_path / name)
        found = workdir.load_run(tmp_path / name).params
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_names_of_all_parameters(w: dict[str, np.ndarray]) -> None:
    shapes = make_tokenizer(SECTION, 32, 16).shapes()["dalle"]
    paths = jax.tree_util.tree_leaves_with_path(shapes)
    assert {pytorch_name([key.key for key in path]) for path, _ in paths} == set(w)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {"cls_token": w["blocks.input.b"]},
         "blocks.input.w or blocks.output.conv.w is missing"),
        (lambda w: {k: v for k, v in w.items() if "group_3.block_1.id_path.b" not in k},
         "blocks.group_3.block_1.id_path.b is missing"),
        (lambda w: {**w, "blocks.group_5.w": w["blocks.input.b"]},
         "unknown arrays blocks.group_5.w"),
        (lambda w: {**w, "blocks.group_1.block_1.res_path.conv_1.w": w["blocks.input.w"]},
         "conv_1.w has shape [8, 3, 7, 7]. Expected [2, 8, 3, 3]"),
    ],
)  # fmt: skip
def test_other_files(
    change: Any, said: str, w: dict[str, np.ndarray], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_zip(tmp_path / "file.pkl", change(w))
    command = ["weights", "import", str(tmp_path / "file.pkl"), "--from", "dalle", "--to"]
    assert main([*command, str(tmp_path / "run")]) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_cycle_and_code_are_refused(tmp_path: Path) -> None:
    loop = module("dall_e.utils.Conv2d", modules={"again": Opcodes(b"h\x00")})
    put = Opcodes(loop.replace(b")\x81", b")\x81q\x00", 1))
    with pytest.raises(UserError, match="in two places"):
        import_weights(write_zip(tmp_path / "loop", pickled(put), {}), "dalle", tmp_path / "run")
    for name in ("dall_e.utils.map_pixels", "torch.nn.modules.container.exec", "os.system"):
        path, _, function = name.rpartition(".")
        code = pickled(Opcodes(f"c{path}\n{function}\n)R".encode()))
        with pytest.raises(UserError, match=f"contains code: {name}"):
            import_weights(write_zip(tmp_path / "code", code, {}), "dalle", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_without_an_encoder(imported: Path) -> None:
    trained = workdir.load_run(imported)
    with pytest.raises(UserError, match=r"holds an imported tokenizer and no encoder\. Give it to"):
        _ = trained.objective.networks
    stored = json.loads((imported / "config.json").read_text())["experiment"]["objective"]
    assert stored["tokenizer"] == SECTION
    assert make_objective(stored, trained.objective.setting).axes
