"""Products inside kernels are numpy's, whatever does not divide."""

import numpy as np
import pytest
import torch

from mneme.controllers.scans.machine_code import compiled
from mneme.controllers.scans.products import multiply, padded, panels

SHAPES = [(1, 1, 1), (1, 5, 40), (3, 7, 33), (4, 1, 16), (5, 40, 15), (9, 3, 100), (15, 2, 70)]


@compiled
def run(left, first, depth, right, panel, stop, out, column, adds):  # type: ignore[no-untyped-def]
    multiply(left, first, depth, right, panel, stop, out, column, adds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("B,M,N", SHAPES)
def test_it_is_the_product_and_takes_the_place_of_what_was_there(B: int, M: int, N: int, dtype: torch.dtype) -> None:
    left, right = torch.randn(B, M, dtype=dtype), torch.randn(N, M, dtype=dtype).t()
    laid_out = panels(right.numpy())
    out = torch.full((B, laid_out.shape[0] * laid_out.shape[2]), torch.nan, dtype=dtype)
    run(left.numpy(), 0, M, laid_out, 0, len(laid_out), out.numpy(), 0, False)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    expected = (left.double() @ right.double()).numpy()
    np.testing.assert_allclose(out[:, :N].numpy(), expected, rtol=tolerance, atol=tolerance)
    assert torch.count_nonzero(out[:, N:]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parts_of_the_factors_are_multiplied_and_added_where_they_belong(dtype: torch.dtype) -> None:
    left, right = torch.randn(9, 7, dtype=dtype), torch.randn(5, 120, dtype=dtype)
    laid_out, out = panels(right.numpy()), torch.randn(9, 200, dtype=dtype)
    width = laid_out.shape[2]
    expected = out.clone()
    expected[:, 3 : 3 + 2 * width] += left[:, 2:6] @ right[:4, width : 3 * width]
    run(left.numpy(), 2, 4, laid_out, 1, 3, out.numpy(), 3, True)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [5, 16, 20])
def test_gates_have_panels_of_their_own_in_the_order_that_is_asked_for(size: int) -> None:
    right = torch.randn(3, 2 * size)
    laid_out = torch.from_numpy(panels(right.numpy(), gates=(1, 0), first_row=2))
    columns = padded(size, right.dtype)
    rows = laid_out.transpose(0, 1).reshape(3, 2, columns)
    assert torch.equal(rows[..., :size].flip(1).flatten(1), right.roll(-2, 0))
    assert torch.count_nonzero(rows[..., size:]) == 0
