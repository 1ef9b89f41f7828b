"""Relative position and layer scale, BEiT's additions to the ViT, against NumPy."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_vit import MEAN, STD, erf_gelu, norm, softmax

from occinv import schema
from occinv.models import vit
from occinv.models.position import relative_offsets
from occinv.models.vit import Pretrained, ViT
from occinv.objectives import forward
from occinv.objectives.base import Setting, make_objective
from occinv.schema import UserError

IMAGES, SIZE, PATCH, WIDTH, DEPTH, HEADS, KEPT = 3, 8, 2, 8, 2, 2, 5
SIDE = SIZE // PATCH


def small(relative_position: str | None = "block", **fields: Any) -> ViT:
    sizes = {"patch_size": PATCH, "width": WIDTH, "depth": DEPTH, "heads": HEADS}
    return ViT(SIZE, relative_position=relative_position, **sizes, **fields)


def weights_of(model: ViT) -> Any:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    return jax.tree.map(
        lambda x: 0.5 * rng.standard_normal(x.shape).astype(np.float32), shapes["params"]
    )


def bias_of(table: np.ndarray, first: int, second: int, side: int = SIDE) -> np.ndarray:
    """Return the bias [heads] of the attention of token `first` to `second`; 0: class token."""
    patches = (2 * side - 1) ** 2
    if 0 in (first, second):
        return table[patches + (first == 0 == second) * 2 + (second == 0 != first)]
    (row, column), (other_row, other_column) = divmod(first - 1, side), divmod(second - 1, side)
    return table[(row - other_row + side - 1) * (2 * side - 1) + column - other_column + side - 1]


def by_numpy(params: Any, pixels: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Return the residual stream after the last block for the patches `shown` [n] of an image."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = (
        ((pixels - MEAN) / STD)
        .reshape(SIDE, PATCH, SIDE, PATCH, 3)
        .swapaxes(1, 2)
        .reshape(SIDE**2, -1)
    )
    x = x @ w["patch_embed"]["kernel"] + w["patch_embed"]["bias"]
    x = np.concatenate([w["class_token"][None], x[shown]])
    tokens = [0, *(1 + shown)]

    def linear(x: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
        return x @ layer["kernel"] + layer["bias"]

    for index in range(DEPTH):
        block = jax.tree.map(lambda leaf, index=index: leaf[index], w["blocks"]["scan"])
        table = w["relative_position"][index % len(w["relative_position"])]
        qkv = linear(norm(x, **block["norm1"]), block["attention"]["qkv"])
        q, k, v = qkv.reshape(len(x), 3, HEADS, -1).transpose(1, 2, 0, 3)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(WIDTH / HEADS)
        for i, first in enumerate(tokens):
            for j, second in enumerate(tokens):
                scores[:, i, j] += bias_of(table, first, second)
        y = (softmax(scores) @ v).swapaxes(0, 1).reshape(x.shape)
        x = x + block["scale1"]["scale"] * linear(y, block["attention"]["out"])
        y = linear(
            erf_gelu(linear(norm(x, **block["norm2"]), block["mlp"]["in"])), block["mlp"]["out"]
        )
        x = x + block["scale2"]["scale"] * y
    return x


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).random((IMAGES, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("relative_position", ["shared", "block"])
@pytest.mark.parametrize("kept", [None, KEPT])
def test_the_encoder_equals_numpy(
    pixels: np.ndarray, relative_position: str, kept: int | None
) -> None:
    """For whole images, and for images without patches, other ones in each image."""
    model = small(relative_position, layer_scale=0.1, final_norm=False)
    params, visible = weights_of(model), None
    order = np.random.default_rng(2).permuted(np.tile(np.arange(SIDE**2), (IMAGES, 1)), axis=1)
    if kept is not None:
        visible = order < kept
    found = jax.jit(model.apply, static_argnums=3)({"params": params}, pixels, visible, kept)
    assert found.tokens.shape == (IMAGES, 1 + (kept or SIDE**2), WIDTH)
    for b in range(IMAGES):
        shown = np.arange(SIDE**2) if visible is None else np.flatnonzero(visible[b])
        expected = by_numpy(params, pixels[b], shown)
        np.testing.assert_allclose(found.tokens[b], expected, rtol=1e-4, atol=1e-4)


def test_a_smaller_grid_uses_a_part_of_the_table() -> None:
    """Equal differences of position have the same row in every grid."""
    table = np.arange(7 * 7 + 3)[:, None]
    offsets = relative_offsets((2, 2), (4, 4))
    for first in range(5):
        for second in range(5):
            big = [
                token and 1 + 4 * ((token - 1) // 2) + (token - 1) % 2 for token in (first, second)
            ]
            assert table[offsets[first, second]] == bias_of(table, *big)


def test_the_table_of_a_rectangle_has_a_row_for_each_difference() -> None:
    """(2 · 2 - 1) · (2 · 3 - 1) differences of a grid of 2 x 3 patches, and three of the token."""
    offsets = relative_offsets((2, 3), (2, 3))
    places = [divmod(patch, 3) for patch in range(6)]
    for first, (row, column) in enumerate(places):
        for second, (other_row, other_column) in enumerate(places):
            expected = 5 * (row - other_row + 1) + column - other_column + 2
            assert offsets[1 + first, 1 + second] == expected
    assert offsets[0].tolist() == [17, *[15] * 6] and (offsets[1:, 0] == 16).all()


def test_larger_images_are_refused(pixels: np.ndarray) -> None:
    model = small()
    params = {"params": weights_of(model)}
    assert model.apply(params, pixels[:, :4, :4]).tokens.shape == (IMAGES, 5, WIDTH)
    with pytest.raises(UserError, match=r"'block' with images of 6² patches, expected at most"):
        model.apply(params, np.zeros((1, 12, 12, 3), np.float32))


def test_relative_position_and_layer_scale_are_optional(pixels: np.ndarray) -> None:
    plain = weights_of(small(None))
    assert "relative_position" not in plain and "scale1" not in plain["blocks"]["scan"]
    assert "position" in plain and "position" not in weights_of(small())
    start = jax.jit(small(layer_scale=0.1).init)(jax.random.key(0), pixels)["params"]
    scales = start["blocks"]["scan"]
    for name in ("scale1", "scale2"):
        np.testing.assert_array_equal(
            scales[name]["scale"], np.full((DEPTH, WIDTH), 0.1, np.float32)
        )
    assert not np.any(start["relative_position"])
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}


def test_bfloat16_adds_the_bias_in_float32(pixels: np.ndarray) -> None:
    model = small(layer_scale=0.1)
    params = {"params": weights_of(model)}
    exact, rounded = (
        model.apply(params, pixels),
        model.clone(dtype=jnp.bfloat16).apply(params, pixels),
    )
    assert rounded.blocks.dtype == jnp.bfloat16
    np.testing.assert_allclose(rounded.tokens, exact.tokens, atol=0.2)


def begin(relative_position: str, start: Any) -> Any:
    """Return the parameters of an encoder that starts from those of another."""
    encoder = schema.Encoder(
        name="micro", patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS,
        relative_position=relative_position,  # type: ignore[arg-type]
    )  # fmt: skip
    objective = make_objective(
        {"name": "classification"}, Setting(vit.make_vit(encoder, SIZE), 3, 10)
    )
    init = jax.jit(lambda start: forward.init(objective, jax.random.key(0), start)[0]["encoder"])
    return init(Pretrained({"encoder": start}, (SIZE // PATCH, SIZE // PATCH)))


def test_a_shared_table_is_copied_to_each_block() -> None:
    """BEiT is pretrained with a shared table and fine-tuned with one for each block."""
    start = weights_of(small("shared"))
    begun = begin("block", start)
    for block in range(DEPTH):
        np.testing.assert_array_equal(
            begun["relative_position"][block], start["relative_position"][0]
        )
    own = weights_of(small("block"))
    begun = begin("block", own)
    np.testing.assert_array_equal(begun["relative_position"], own["relative_position"])
    with pytest.raises(UserError, match="init_from: relative_position of that encoder has shapes"):
        begin("shared", own)
