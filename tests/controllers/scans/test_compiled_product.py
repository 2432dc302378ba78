"""Products inside kernels are numpy's, whatever does not divide."""

import numpy as np
import pytest
import torch

from mneme.controllers.scans.compiled import compiled
from mneme.controllers.scans.compiled_product import multiply, panels
from mneme.controllers.scans.tiles import TileShape, product_tiles

SHAPES = [(1, 1, 1), (1, 5, 40), (3, 7, 33), (4, 1, 16), (5, 40, 15), (64, 128, 384), (9, 3, 100)]


@compiled
def run(left, right, out, tiles):  # type: ignore[no-untyped-def]
    multiply(left, right, out, tiles)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("B,M,N", SHAPES)
def test_it_is_the_product_and_takes_the_place_of_what_was_there(B: int, M: int, N: int, dtype: torch.dtype) -> None:
    left, right = torch.randn(B, M, dtype=dtype), torch.randn(N, M, dtype=dtype).t()
    tiles, out = product_tiles(B, N, dtype), torch.full((B, N), torch.nan, dtype=dtype)
    run(left.numpy(), panels(right, tiles).numpy(), out.numpy(), tiles)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(out.numpy(), (left.double() @ right.double()).numpy(), rtol=tolerance, atol=tolerance)


def test_the_last_panel_begins_early_where_columns_are_left_over() -> None:
    right = torch.arange(10.0).view(1, 10)
    assert panels(right, TileShape(1, 4)).squeeze(1).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]]


def test_tiles_are_no_larger_than_the_product() -> None:
    for rows, columns in ((1, 1), (2, 3), (3, 100), (64, 5), (64, 128)):
        tiles = product_tiles(rows, columns, torch.float32)
        assert tiles.rows <= rows and tiles.width <= columns
    wide, narrow = (product_tiles(64, 512, dtype).width for dtype in (torch.float32, torch.float64))
    assert wide == 2 * narrow  # as many bytes
