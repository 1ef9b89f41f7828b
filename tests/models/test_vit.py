"""The encoder: normalization, removed patches, positions, drop path and sizes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_vit import MEAN, STD

from occinv import schema
from occinv.models.blocks import drop_path
from occinv.models.vit import SIZES, ViT, make_vit, start_from
from occinv.rng import image_rngs

IMAGES, SIZE, PATCH, COUNT, KEPT = 3, 8, 2, 16, 4


def small(**fields: Any) -> ViT:
    return ViT(image_size=SIZE, patch_size=PATCH, width=8, depth=2, heads=2, **fields)


def weights_of(model: ViT) -> Any:
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    return jax.tree.map(
        lambda x: 0.3 * draw.standard_normal(x.shape).astype(np.float32), shapes["params"]
    )


def run(model: ViT, pixels: np.ndarray, visible: Any = None, rng: Any = None) -> Any:
    """Return features, computed with fixed random weights."""

    def apply(pixels: jax.Array, visible: Any, rng: Any) -> Any:
        kept = None if visible is None else KEPT
        return model.apply({"params": weights_of(model)}, pixels, visible, kept, rng)

    return jax.device_get(jax.jit(apply)(pixels, visible, rng))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(1).random((IMAGES, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def visible() -> np.ndarray:
    order = np.random.default_rng(2).permuted(np.tile(np.arange(COUNT), (IMAGES, 1)), axis=1)
    return order < KEPT


def spoiled(pixels: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Replace the pixels of every patch that is not visible."""
    grid = visible.reshape(IMAGES, 4, 4).repeat(PATCH, 1).repeat(PATCH, 2)[..., None]
    return np.where(grid, pixels, 7.0).astype(np.float32)


@pytest.mark.parametrize("size", [SIZE, SIZE // 2])
@pytest.mark.parametrize("pixel_range", ["imagenet", "half"])
def test_pixels_are_normalized_at_the_door(pixels: np.ndarray, pixel_range: Any, size: int) -> None:
    """With blocks that add nothing, a token is the linear projection of its normalized patch."""
    model = small(relative_position="shared", final_norm=False, pixel_range=pixel_range)
    weights = weights_of(model)
    weights["blocks"] = jax.tree.map(np.zeros_like, weights["blocks"])
    given = pixels[:, :size, :size]
    tokens = np.asarray(model.apply({"params": weights}, given).tokens)
    mean, deviation = {"imagenet": (MEAN, STD), "half": (0.5, 0.5)}[pixel_range]
    kernel, bias = (weights["patch_embed"][name].astype(float) for name in ("kernel", "bias"))
    side = size // PATCH
    for b in range(IMAGES):
        for n in range(side**2):
            y, x = n // side * PATCH, n % side * PATCH
            patch = (given[b, y : y + PATCH, x : x + PATCH].astype(float) - mean) / deviation
            expected = patch.ravel() @ kernel + bias
            np.testing.assert_allclose(tokens[b, 1 + n], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_patch_projection_has_no_gradient(pixels: np.ndarray, frozen: bool) -> None:
    model = small(train_patch=not frozen)

    def total(weights: Any) -> jax.Array:
        return (model.apply({"params": weights}, pixels).tokens ** 3).sum()

    gradient = jax.jit(jax.grad(total))(weights_of(model))
    has_gradient = {name: bool(np.any(leaf)) for name, leaf in gradient["patch_embed"].items()}
    assert has_gradient == {"kernel": not frozen, "bias": not frozen}
    assert np.any(gradient["class_token"])


@pytest.mark.parametrize("mask_token", [False, True])
def test_a_removed_patch_has_no_influence(
    pixels: np.ndarray, visible: np.ndarray, mask_token: bool
) -> None:
    model = small(mask_token=mask_token)
    found = run(model, pixels, visible)
    tokens = COUNT if mask_token else KEPT
    assert found.tokens.shape == (IMAGES, 1 + tokens, 8)
    assert found.blocks.shape == (2, IMAGES, 1 + tokens, 8)
    again = run(model, spoiled(pixels, visible), visible)
    np.testing.assert_array_equal(found.tokens, again.tokens)
    # A visible patch has an influence.
    other = run(model, spoiled(pixels, ~visible), visible)
    assert np.abs(found.tokens - other.tokens).max() > 1e-3


def test_dropping_and_replacing_differ(pixels: np.ndarray, visible: np.ndarray) -> None:
    dropped = run(small(), pixels, visible).tokens[:, 0]
    replaced = run(small(mask_token=True), pixels, visible).tokens[:, 0]
    assert np.abs(dropped - replaced).max() > 1e-3


def test_tokens_keep_the_position_of_their_patch(pixels: np.ndarray) -> None:
    """The same pixels at another position give another feature."""
    same = np.broadcast_to(pixels[:1, :PATCH, :PATCH], (2, PATCH, PATCH, 3))
    canvas = np.tile(same[:1], (2, 4, 4, 1))
    visible = np.zeros((2, COUNT), bool)
    visible[0, :KEPT] = visible[1, -KEPT:] = True
    found = run(small(), canvas, visible)
    assert np.abs(found.tokens[0] - found.tokens[1]).max() > 1e-3


def test_without_final_norm_tokens_are_the_last_block(pixels: np.ndarray) -> None:
    found = run(small(final_norm=False), pixels)
    np.testing.assert_array_equal(found.tokens, found.blocks[-1])
    normed = run(small(), pixels)
    assert np.abs(normed.tokens - normed.blocks[-1]).max() > 1e-3


def test_drop_path_acts_only_with_an_rng(pixels: np.ndarray) -> None:
    model, plain = small(drop_path=0.9), run(small(), pixels)
    np.testing.assert_array_equal(run(model, pixels).tokens, plain.tokens)
    rng = image_rngs(jax.random.key(0), jnp.int32(0), IMAGES)
    dropped = run(model, pixels, rng=rng)
    # The rate grows from 0 at the first block.
    np.testing.assert_allclose(dropped.blocks[0], plain.blocks[0], rtol=1e-6)
    assert np.abs(dropped.blocks[1] - plain.blocks[1]).max() > 1e-3


def test_drop_path_drops_whole_branches_and_keeps_the_expectation() -> None:
    count, rate = 4000, 0.3
    branch = jnp.ones((count, 2, 3))
    rng = image_rngs(jax.random.key(0), jnp.int32(0), count)
    dropped = np.asarray(drop_path(rng, branch, jnp.float32(rate)))
    values = dropped.reshape(count, -1)
    assert (values == values[:, :1]).all()
    np.testing.assert_allclose(np.unique(values), [0, 1 / (1 - rate)], rtol=1e-6)
    assert (values[:, 0] == 0).mean() == pytest.approx(rate, abs=0.03)
    assert values.mean() == pytest.approx(1, abs=0.04)
    assert drop_path(None, branch, jnp.float32(rate)) is branch


def test_sizes_by_name_and_by_field() -> None:
    base = make_vit(schema.Encoder(name="base"), 224)
    assert (base.width, base.depth, base.heads) == SIZES["base"] == (768, 12, 12)
    assert base.num_patches == 196
    odd = make_vit(schema.Encoder(name="micro", width=32, depth=3, heads=8, patch_size=8), 32)
    assert (odd.width, odd.depth, odd.heads, odd.num_patches) == (32, 3, 8, 16)


@pytest.mark.parametrize("width", [20, 30])
def test_a_width_that_the_heads_do_not_divide_is_refused(width: int) -> None:
    with pytest.raises(schema.UserError, match=rf"encoder.width={width}, expected a multiple of 4"):
        make_vit(schema.Encoder(name="micro", width=width, heads=8), 32)


def test_a_width_that_is_not_a_multiple_of_4_is_refused() -> None:
    with pytest.raises(schema.UserError, match=r"encoder.width=6, expected a multiple of 4"):
        make_vit(schema.Encoder(name="micro", width=6, heads=2), 32)


def test_registers_and_no_class_token(pixels: np.ndarray, visible: np.ndarray) -> None:
    """Tests that registers change the features but are not in them, and that the mean is first."""
    model = small(registers=2, class_token=False)
    params = weights_of(model)
    assert set(params) == {"patch_embed", "position", "registers", "blocks", "norm"}
    whole, part = run(model, pixels), run(model, spoiled(pixels, visible), visible)
    assert whole.tokens.shape == (IMAGES, 1 + COUNT, 8)
    assert part.blocks.shape == (2, IMAGES, 1 + KEPT, 8)
    np.testing.assert_array_equal(part.tokens, run(model, pixels, visible).tokens)
    for found in (*whole, *part):
        mean = found[..., 1:, :].mean(-2)
        np.testing.assert_allclose(found[..., 0, :], mean, rtol=1e-5, atol=1e-6)
    moved = params | {"registers": -params["registers"]}
    other = model.apply({"params": moved}, pixels).tokens
    assert np.abs(other - whole.tokens).max() > 1e-3


def test_start_from_an_encoder_with_other_tokens() -> None:
    for mine, theirs, said in (
        ({}, {"registers": 2}, "encoder.registers=2"),
        ({"registers": 2}, {}, "encoder.registers=0"),
        ({}, {"class_token": False}, "encoder.class_token=False"),
    ):
        model, other = small(**mine), small(**theirs)
        with pytest.raises(schema.UserError, match=said):
            start_from(model, weights_of(model), weights_of(other), model.grid)


@pytest.mark.parametrize("field", [{"registers": 1}, {"class_token": False}])
def test_relative_positions_need_a_class_token_alone(field: Any) -> None:
    encoder = schema.Encoder(name="micro", patch_size=2, relative_position="shared", **field)
    with pytest.raises(schema.UserError, match="expected a class token alone"):
        make_vit(encoder, 8)
