"""The position embedding; its values are held to the official ones in tests/fidelity."""

import numpy as np

from occinv.encoder.position import sincos


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
