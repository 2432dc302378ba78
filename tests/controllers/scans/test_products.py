"""Products inside kernels are numpy's, whatever does not divide."""

import numpy as np
import pytest

from mneme.controllers.scans.machine_code import compiled
from mneme.controllers.scans.products import multiply

SHAPES = [(1, 1, 1), (1, 5, 40), (3, 7, 33), (4, 1, 16), (5, 40, 15), (9, 3, 100)]


@compiled
def run(left, right, out):  # type: ignore[no-untyped-def]
    multiply(left, right, out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("B,M,N", SHAPES)
def test_it_is_the_product_and_takes_the_place_of_what_was_there(B: int, M: int, N: int, dtype: type) -> None:
    generator = np.random.default_rng(0)
    left, right = (generator.normal(size=shape).astype(dtype) for shape in ((B, M), (M, N)))
    out = np.full((B, N), np.nan, dtype)
    run(left, right, out)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(out, left.astype(np.float64) @ right, rtol=tolerance, atol=tolerance)
