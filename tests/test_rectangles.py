"""Rectangular images and patches, and images of other numbers of channels, for every objective."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_objectives import DECODER, IMAGES, loss_of_views, make, make_batch, rngs_of, start
from test_contract import CASES

from occinv.models import decoder, predictor, regressor, vit
from occinv.models.position import sincos
from occinv.models.vit import Pretrained, start_from
from occinv.objectives import OBJECTIVES, forward, linear_probe
from occinv.objectives.forward import start_networks
from occinv.schema import UserError
from occinv.transforms.hog import hog
from occinv.transforms.view import View

SIZE, PATCH = (16, 24), (8, 4)
GRID = (2, 6)
# One case of every objective, and the parts that other cases add.
SHAPES = {CASES[case]["name"]: case for case in reversed(CASES)}.values()
MORE = ("cmae BYOL, queries", "classification, mixed", "grid, Eq. 8 with an EMA")
FIELDS: dict[str, dict[str, Any]] = {"maskfeat": {"cell_size": 4}}


def gray(name: str, **fields: Any) -> Any:
    """Build an objective for gray images of 16 x 24 pixels, with patches of 8 x 4."""
    options = {"size": SIZE, "patch": PATCH, "channels": 1, **fields}
    return make(name, **{**FIELDS.get(name, {}), **options})


def test_every_objective_has_a_case() -> None:
    assert {CASES[case]["name"] for case in SHAPES} == set(OBJECTIVES)


@pytest.mark.parametrize("case", [*SHAPES, *MORE])
def test_every_objective_takes_gray_rectangles(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape fits: networks, views, features, loss of each image, and its gradient."""
    grids = set()

    def recorded(grid: Any, width: int) -> np.ndarray:
        grids.add(grid)
        return sincos(grid, width)

    for module in (vit, decoder, predictor, regressor, linear_probe):
        monkeypatch.setattr(module, "sincos", recorded)
    objective = gray(**CASES[case])
    batch = make_batch(objective)
    assert batch.image.shape == (IMAGES, *SIZE, 1)

    def loss(params: Any, state: Any, batch: Any) -> Any:
        terms = forward.terms_of(objective, params, state, batch, rngs_of(), jnp.int32(3))
        return terms.loss.sum(), terms

    params, state = jax.eval_shape(lambda: forward.init(objective, jax.random.key(0)))
    gradients, terms = jax.eval_shape(jax.grad(loss, has_aux=True), params, state, batch)
    assert terms.loss.shape == (IMAGES,)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, params)
    position, kernel = params["encoder"]["position"], params["encoder"]["patch_embed"]["kernel"]
    assert grids == {GRID}
    assert position.shape == (1 + 2 * 6, 16) and kernel.shape == (8 * 4 * 1, 16)


def swapped_patches(values: Any, axis: int) -> Any:
    """Exchange rows and columns of the flattened patches of one channel along an axis."""
    split = np.moveaxis(values, axis, 0).reshape(*PATCH, -1).swapaxes(0, 1)
    moved = split.reshape(-1, *np.delete(values.shape, axis))
    return np.moveaxis(moved, 0, axis)


def swapped_grid(values: Any, axis: int, first: int = 0) -> Any:
    """Exchange rows and columns of the N patches along an axis, after the `first` tokens."""
    moved = np.moveaxis(values, axis, 0)
    patches = moved[first:].reshape(*GRID, *moved.shape[1:]).swapaxes(0, 1)
    joined = np.concatenate([moved[:first], patches.reshape(-1, *moved.shape[1:])])
    return np.moveaxis(joined, 0, axis)


def test_exchanged_axes_of_image_patch_and_position_give_the_exchanged_result() -> None:
    """MAE, loss and reconstruction: no rows are taken for columns anywhere."""
    tall = gray("mae", **DECODER)
    wide = gray("mae", **DECODER, size=SIZE[::-1], patch=PATCH[::-1])
    params, _ = start(tall)
    batch = make_batch(tall)
    pixels = batch.image.astype(np.float32) / 255
    visible = np.random.default_rng(0).permuted(np.tile(np.arange(12) < 3, (IMAGES, 1)), axis=1)

    exchanged = jax.tree.map(lambda leaf: leaf, params)
    encoder, own = exchanged["encoder"], exchanged["decoder"]
    encoder["patch_embed"]["kernel"] = swapped_patches(encoder["patch_embed"]["kernel"], 0)
    for part in (encoder, own):
        part["position"] = swapped_grid(part["position"], 0, first=1)
    for name, axis in (("kernel", 1), ("bias", 0)):
        own["predict"][name] = swapped_patches(own["predict"][name], axis)

    losses, pictures = [], []
    for objective, weights, image, seen in (
        (tall, params, pixels, visible),
        (wide, exchanged, pixels.swapaxes(1, 2), swapped_grid(visible, 1)),
    ):
        views = View(jnp.asarray(image), jnp.asarray(seen), 3), View(image, ~seen, 9)
        losses.append(loss_of_views(objective, views, weights, {}, batch).loss)
        pictures.append(objective.reconstruct(weights, jnp.asarray(image), jnp.asarray(seen)))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    for first, second in zip(*pictures, strict=True):
        np.testing.assert_allclose(first, second.swapaxes(1, 2), atol=1e-5)
    assert not np.allclose(losses[0][0], losses[0][1], rtol=1e-3)


def test_the_cells_of_hog_in_a_patch_follow_by_row() -> None:
    pixels = np.random.default_rng(0).random((2, *SIZE, 1)).astype(np.float32)
    found, cells = gray("maskfeat").target(pixels), hog(jnp.asarray(pixels), 4)
    for patch in range(12):
        row, column = divmod(patch, 6)
        expected = cells[:, 2 * row : 2 * row + 2, column].reshape(2, -1)
        np.testing.assert_array_equal(found[:, patch], expected)


def test_a_run_starts_from_positions_of_another_rectangle_with_as_many_patches() -> None:
    """3 x 4 patches are not the 2 x 6 of the run, which the number of positions does not show."""
    objective = gray("mae", **DECODER)
    encoder, (params, _) = objective.networks.encoder, start(objective)
    own = params["encoder"]
    same = start_from(encoder, own, own, GRID)
    np.testing.assert_array_equal(same["position"], own["position"])
    resized = start_from(encoder, own, own, (3, 4))["position"]
    assert resized.shape == own["position"].shape
    assert np.abs(resized[1:] - own["position"][1:]).max() > 0.01
    with pytest.raises(UserError, match="decoder of that run has positions of 3 × 4 patches, exp"):
        start_networks(objective, params, Pretrained(params, (3, 4)))
    tables = {**own, "relative_position": np.zeros((1, 36, 2))}
    with pytest.raises(UserError, match="relative positions of 3 × 4 patches cannot be resized"):
        start_from(encoder, tables, tables, (3, 4))


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("mae", {"pixel_range": "imagenet"}, "data.channels=1 with encoder.pixel_range='imagenet'"),
        ("beit", {"tokenizer": {"name": "dalle"}}, "data.channels=1 with .*'dalle', which reads R"),
        ("simmim", {"mask_unit": 3}, "mask_unit=3 does not divide .* 2 × 6 patches.* of 1, 2$"),
        ("maskfeat", {"cell_size": 3}, r"divide encoder.patch_size=\(8, 4\), .* one of 1, 2, 4$"),
        ("dino", {"local_size": (8, 6)}, r"local_size=\(8, 6\) is not divisible by .*=\(8, 4\)$"),
    ],
)
def test_impossible_rectangles_are_refused(name: str, fields: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        gray(name, **fields)
