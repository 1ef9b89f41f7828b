"""The position embedding; tests/fidelity compares its values with the official ones."""

import jax
import jax.numpy as jnp
import numpy as np
from small_objectives import make

from occinv.models.position import bicubic, interpolate, sincos
from occinv.models.vit import Pretrained
from occinv.objectives import forward


def test_the_first_half_encodes_the_column_and_the_second_the_row() -> None:
    side, width = 5, 16
    table = sincos(side, width)
    assert table.shape == (1 + side**2, width) and table.dtype == np.float32
    np.testing.assert_array_equal(table[0], 0)
    grid = table[1:].reshape(side, side, width)
    columns, rows = grid[..., : width // 2], grid[..., width // 2 :]
    for row in range(side):
        for column in range(side):
            np.testing.assert_array_equal(columns[row, column], columns[0, column])
            np.testing.assert_array_equal(rows[row, column], rows[row, 0])
            assert np.isclose(columns[row, column, 0], np.sin(column), atol=1e-6)
            assert np.isclose(rows[row, column, 0], np.sin(row), atol=1e-6)


def test_the_position_of_another_grid_is_resized_when_a_run_starts_from_it() -> None:
    small, large = (make("classification", size=size) for size in (16, 24))
    before = forward.init(small, jax.random.key(0))[0]["encoder"]
    start = Pretrained({"encoder": before}, (4, 4))
    after = forward.init(large, jax.random.key(1), start)[0]["encoder"]
    assert after["position"].shape == (1 + 36, 16)
    np.testing.assert_allclose(after["position"], interpolate(before["position"], 4, 6))
    np.testing.assert_array_equal(after["class_token"], before["class_token"])


def test_a_rectangle_is_resized_along_each_side_by_itself() -> None:
    draw = np.random.default_rng(0).standard_normal((1 + 3 * 2, 4)).astype(np.float32)
    found = np.asarray(interpolate(jnp.asarray(draw), (3, 2), (2, 5), extra=0.1))
    rows, columns = bicubic(3, 2, 2.1 / 3), bicubic(2, 5, 5.1 / 2)
    grid = draw[1:].reshape(3, 2, 4)
    for row in range(2):
        for column in range(5):
            weights = np.outer(rows[row], columns[column])[..., None]
            expected = (weights * grid).sum((0, 1))
            np.testing.assert_allclose(found[1 + 5 * row + column], expected, atol=1e-5)


def test_resizing_keeps_constant_channels_and_the_class_token() -> None:
    position = jnp.concatenate([jnp.full((1, 4), 7.0), jnp.tile(jnp.arange(4.0), (9, 1))])
    resized = interpolate(position, 3, 5)
    np.testing.assert_allclose(resized[1:], jnp.tile(jnp.arange(4.0), (25, 1)), atol=1e-6)
    np.testing.assert_array_equal(resized[0], 7)
    assert interpolate(position, 3, 3) is position
