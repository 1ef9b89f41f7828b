"""The class token's attention against NumPy, and pictures of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_models import DECODER, DEPTH, PATCH, SIZE, WIDTH, N, encode, encoder_of, images
from example_models import save_run as save
from matplotlib import colormaps
from numpy_vit import erf_gelu, norm, softmax
from PIL import Image

from occinv.cli import main
from occinv.evaluate import evaluate
from occinv.evaluators.attention import Attended, attend
from occinv.evaluators.pictures import save_pictures
from occinv.models.attention import Attention
from occinv.models.blocks import Layout
from occinv.models.class_attention import class_attention
from occinv.schema import UserError

HEADS = 2
SECTIONS: dict[str, dict[str, Any]] = {
    "mae": {"name": "mae", **DECODER},
    "a mask token, which replaces no patch of a whole image": {"name": "cmae"},
}


def by_numpy(params: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """Attention of the class token to every token, itself first: [depth, B, heads, 1 + N]."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    side = SIZE // PATCH
    x = x.reshape(-1, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(len(pixels), N, -1) @ w["patch_embed"]["kernel"] + w["patch_embed"]["bias"]
    first = np.broadcast_to(w["class_token"], (len(x), 1, WIDTH))
    x = np.concatenate([first, x], 1) + w["position"]
    found = []
    for index in range(DEPTH):
        block = jax.tree.map(lambda leaf, index=index: leaf[index], w["blocks"]["scan"])

        def linear(x: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
            return x @ layer["kernel"] + layer["bias"]

        y = norm(x, **block["norm1"])
        qkv = linear(y, block["attention"]["qkv"]).reshape(len(x), 1 + N, 3, HEADS, -1)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        weights = softmax(q @ k.swapaxes(-1, -2) / math.sqrt(WIDTH / HEADS))
        found.append(weights[:, :, 0])
        y = (weights @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + linear(y, block["attention"]["out"])
        y = norm(x, **block["norm2"])
        x = x + linear(erf_gelu(linear(y, block["mlp"]["in"])), block["mlp"]["out"])
    return np.stack(found)


@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
@pytest.mark.parametrize("unroll", [0, 4])
def test_attention_against_numpy(section: dict[str, Any], unroll: int) -> None:
    encoder, params = encoder_of(section)
    pixels = images(3).image / np.float32(255)
    found = np.asarray(class_attention(encoder.clone(layout=Layout(unroll=unroll)), params, pixels))
    expected = by_numpy(params, pixels)
    assert found.shape == (DEPTH, 3, HEADS, N) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected[..., 1:], rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1) + expected[..., 0], 1, atol=1e-4)
    assert expected[..., 0].mean() > 0.01 and found.std() > 0.01  # otherwise the sums prove nothing


def test_attention_is_computed_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, params = encoder_of(SECTIONS["mae"])
    pixels = jnp.zeros((2, SIZE, SIZE, 3))

    def program() -> str:
        return str(jax.make_jaxpr(lambda p: encoder.apply({"params": p}, pixels))(params))

    plain = program()
    monkeypatch.setattr(Attention, "is_mutable_collection", lambda *_: False)
    assert program() == plain
    monkeypatch.setattr(Attention, "is_mutable_collection", lambda *_: True)
    assert program() != plain
    monkeypatch.undo()
    assert set(encoder.init(jax.random.key(0), pixels)) == {"params"}


def test_requesting_attention_changes_no_feature() -> None:
    encoder, params = encoder_of(SECTIONS["mae"])
    pixels = images(3).image / np.float32(255)
    plain = encode(encoder, params, pixels).tokens
    looked, _ = jax.jit(
        lambda: encoder.apply({"params": params}, pixels, mutable=["intermediates"])
    )()
    np.testing.assert_allclose(looked.tokens, plain, rtol=1e-5, atol=1e-6)


def test_pictures_show_the_values(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    made = [
        Attended(
            draw.integers(0, 256, (SIZE, SIZE, 3), np.uint8),
            draw.dirichlet(np.ones(N), HEADS).astype(np.float32),
            (SIZE // PATCH, SIZE // PATCH),
        )
        for _ in range(2)
    ]
    captions = [one.captions for one in made]
    save_pictures(tmp_path / "new" / "grid.png", [one.pictures for one in made], 3, captions)
    single = tmp_path / "new" / "grid"
    names = {"image", "head1", "head2", "mean"}
    assert {p.name for p in single.iterdir()} == {
        f"{number}_{name}.png" for number in (0, 1) for name in names
    }
    shown = np.asarray(Image.open(single / "1_image.png"))
    np.testing.assert_array_equal(shown, made[1].image.repeat(3, 0).repeat(3, 1))
    for name, values in (("head2", made[1].heads[1]), ("mean", made[1].heads.mean(0))):
        shown = np.asarray(Image.open(single / f"1_{name}.png"))
        assert shown.shape == (3 * SIZE, 3 * SIZE, 3)
        for patch in range(N):
            row, column = divmod(patch, SIZE // PATCH)
            area = shown[3 * PATCH * row : 3 * PATCH * (row + 1), 3 * PATCH * column :][
                :, : 3 * PATCH
            ]
            color = colormaps["inferno"](values[patch] / values.max(), bytes=True)[:3]
            assert (area == color).all()
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        pixels = np.asarray(grid.convert("RGB"))
    brightest = np.array(colormaps["inferno"](1.0, bytes=True)[:3])
    count = (pixels == brightest).all(-1).sum()  # a patch of each of 2 x 3 maps
    assert count >= 6 * (3 * PATCH) ** 2
    assert captions[0]["mean"] == f"to {100 * made[0].heads.mean(0).max():.2g} %"


def test_a_map_without_attention_is_black(tmp_path: Path) -> None:
    nothing = Attended(np.zeros((2, 2, 3), np.uint8), np.zeros((1, 4), np.float32), (2, 2))
    save_pictures(tmp_path / "grid.png", [nothing.pictures])
    assert np.asarray(Image.open(tmp_path / "grid" / "0_mean.png")).max() <= 4


def pictures(workdir: Path, **options: Any) -> Path:
    """The grid of two images."""
    (found,) = evaluate("attention", [workdir], num_images=2, **options)
    assert found.pictures is not None
    return found.pictures


def test_a_run_has_its_pictures(tmp_path: Path) -> None:
    workdir = save(tmp_path / "labels", {"name": "classification"})
    path = pictures(workdir)
    assert path == workdir / "evaluate" / "attention.png" and path.is_file()
    last = {p.name: p.read_bytes() for p in path.with_suffix("").iterdir()}
    assert len(last) == 2 * (1 + HEADS + 1)
    for block, same in ((DEPTH, True), (-DEPTH, False), (1, False)):
        again = pictures(workdir, block=block, out=tmp_path / f"{block}.json")
        found = {p.name: p.read_bytes() for p in again.with_suffix("").iterdir()}
        assert (found == last) == same
    first = [(tmp_path / str(block) / "0_mean.png").read_bytes() for block in (1, -DEPTH)]
    assert first[0] == first[1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = save(tmp_path / "run", {"name": "classification"})
    command = ["evaluate", "attention", "--workdir", str(workdir), "--num-images", "1"]
    assert main([*command, "--block", "-2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{workdir}: 1 images", str(workdir / "evaluate" / "attention.png")]
    assert len(list((workdir / "evaluate" / "attention").iterdir())) == 1 + HEADS + 1
    assert main([*command, "--block", "9"]) == 2
    assert capsys.readouterr().err.startswith("occinv: block=9, expected 1 to 2")


def test_each_block_has_its_own_attention() -> None:
    encoder, params = encoder_of(SECTIONS["mae"])
    image = images(2).image
    whole = class_attention(encoder, params, image / np.float32(255))
    for block in range(DEPTH):
        for number, one in enumerate(attend(encoder, params, image, block)):
            np.testing.assert_allclose(one.heads, whole[block, number], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(one.image, image[number])


@pytest.mark.parametrize("block", [0, DEPTH + 1, -DEPTH - 1])
def test_a_block_that_does_not_exist(block: int, tmp_path: Path) -> None:
    workdir = save(tmp_path / "run", {"name": "classification"})
    with pytest.raises(
        UserError, match=rf"^block={block}, expected 1 to 2, or -1 \(the last\) to -2"
    ):
        pictures(workdir, block=block)
    assert not (workdir / "evaluate").exists()
