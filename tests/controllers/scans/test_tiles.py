"""Tiles hold what numpy says they should, at every shape that a machine may choose."""

import numpy as np
import pytest
import torch

from mneme.controllers.scans.compiled import compiled, exp2
from mneme.controllers.scans.tiles import (
    TileShape,
    add_up,
    load,
    load_column,
    load_down,
    load_row,
    store,
    sum_of_rows,
    tile_shape,
    total,
    zeros,
)

SHAPES = [TileShape(1, 1), TileShape(2, 1), TileShape(1, 2), TileShape(4, 16), TileShape(4, 32)]
DTYPES = [np.float32, np.float64]
ROW, COLUMN = 1, 3  # of the tile in its table


def table(dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((8, 40)).astype(dtype)


def inside(x: np.ndarray, shape: TileShape) -> np.ndarray:
    return x[ROW : ROW + shape.rows, COLUMN : COLUMN + shape.width]


@compiled
def arithmetic(x, y, shape, results):  # type: ignore[no-untyped-def]
    a, b = load(x, ROW, COLUMN, shape), load(y, ROW, COLUMN, shape)
    row, column = load_row(y, ROW, COLUMN, shape), load_column(y, ROW, COLUMN, shape)
    store(results[0], ROW, COLUMN, a + b)
    store(results[1], ROW, COLUMN, a - row)
    store(results[2], ROW, COLUMN, row * a)
    store(results[3], ROW, COLUMN, a * column)
    store(results[4], ROW, COLUMN, sum_of_rows(a))
    store(results[5], ROW, COLUMN, exp2(a))
    store(results[6], ROW, COLUMN, zeros(x.dtype, shape))
    store(results[7], ROW, COLUMN, load_down(y, ROW, COLUMN, shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_arithmetic_is_numpys_and_nothing_else_is_touched(shape: TileShape, dtype: type) -> None:
    x, y = table(dtype), table(dtype, seed=1)
    results = np.full((8, *x.shape), 9, dtype)
    arithmetic(x, y, shape, results)
    a, b = inside(x, shape), inside(y, shape)
    row, column = b[:1], y[ROW, COLUMN : COLUMN + shape.rows, np.newaxis]
    sums, down = a.sum(0, keepdims=True), np.broadcast_to(b[:, :1], b.shape)
    expected = [a + b, a - row, row * a, a * column, sums, np.exp2(a), np.zeros_like(a), down]
    for result, values in zip(results, expected, strict=True):
        whole = np.full_like(result, 9)
        whole[ROW : ROW + len(values), COLUMN : COLUMN + shape.width] = values
        np.testing.assert_allclose(result, whole, rtol=1e-6 if dtype == np.float32 else 1e-14, atol=1e-6)


@compiled
def summed(x, shape, sums, totals):  # type: ignore[no-untyped-def]
    for _ in range(2):
        add_up(sums, ROW, load(x, ROW, COLUMN, shape))
    for row in range(len(totals)):
        totals[row] = total(sums, row, shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_partial_sums_add_up(shape: TileShape, dtype: type) -> None:
    x, sums, totals = table(dtype), np.zeros((8, shape.folded), dtype), np.empty(8, dtype)
    summed(x, shape, sums, totals)
    expected = np.zeros(8)
    expected[ROW : ROW + shape.rows] = 2 * inside(x, shape).astype(np.float64).sum(1)
    np.testing.assert_allclose(totals, expected, rtol=1e-5, atol=1e-5)


@compiled
def powers(x, shape, y):  # type: ignore[no-untyped-def]
    for i in range(0, x.shape[1], shape.width):
        store(y, 0, i, exp2(load_row(x, 0, i, shape)))


def test_powers_keep_to_the_ends_of_the_range_and_show_what_is_not_a_number() -> None:
    shape, x = TileShape(1, 16), np.linspace(-126, 127, 16 * 1000, dtype=np.float32)[np.newaxis]
    y = np.empty_like(x)
    powers(x, shape, y)
    np.testing.assert_allclose(y, np.exp2(x.astype(np.float64)), rtol=3e-7)
    ends = np.full((1, 16), -1.0, np.float32)
    ends[0, :4] = -1e30, -np.inf, np.nan, -0.0
    ends[0, 4:6] = np.array([0x7FC00001, 0x7FFFFFFF], np.int32).view(np.float32)  # so are these
    powers(ends, shape, ends)
    assert (ends[0, :2] <= 2.0**-126).all() and np.isnan(ends[0, [2, 4, 5]]).all() and ends[0, 3] == 1


def test_a_shape_divides_the_states_and_has_a_name_of_its_own_for_each_size() -> None:
    for states, channels in ((16, 256), (3, 20), (6, 7), (1, 1)):
        shape = tile_shape(torch.zeros(states, channels))
        assert states % shape.rows == 0 and channels % shape.width == 0
    assert tile_shape(torch.zeros(16, 256)).rows == 4 and tile_shape(torch.zeros(16, 256)).width >= 16
    wide, narrow = (tile_shape(torch.zeros(16, 256, dtype=dtype)).width for dtype in (torch.float32, torch.float64))
    assert wide == 2 * narrow  # as many bytes
