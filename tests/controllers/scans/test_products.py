"""Products inside kernels are numpy's, whatever does not divide."""

import numpy as np
import pytest
import torch

from mneme.controllers.scans.machine_code import compiled
from mneme.controllers.scans.products import multiply, panels

SHAPES = [(1, 1, 1), (1, 5, 40), (3, 7, 33), (4, 1, 16), (5, 40, 15), (9, 3, 100)]


@compiled
def run(left, right, out):  # type: ignore[no-untyped-def]
    multiply(left, right, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("B,M,N", SHAPES)
def test_it_is_the_product_and_takes_the_place_of_what_was_there(B: int, M: int, N: int, dtype: torch.dtype) -> None:
    left, right = torch.randn(B, M, dtype=dtype), torch.randn(N, M, dtype=dtype).t()
    laid_out = panels(right)
    out = torch.full((B, laid_out.shape[0] * laid_out.shape[2]), torch.nan, dtype=dtype)
    run(left.numpy(), laid_out.numpy(), out.numpy())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    expected = (left.double() @ right.double()).numpy()
    np.testing.assert_allclose(out[:, :N].numpy(), expected, rtol=tolerance, atol=tolerance)
    assert torch.count_nonzero(out[:, N:]) == 0
