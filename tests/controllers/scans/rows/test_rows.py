"""The compiled layers of a residual block against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mneme.controllers.layer_norm import layer_norm
from mneme.controllers.scans.rows.layers import glu_beside
from mneme.controllers.scans.rows.norm import numba_layer_norm

SIZES = [(1, 1, 1), (3, 5, 7), (40, 2, 33)]


def results(outcome: Tensor, arguments: list[Tensor]) -> list[Tensor]:
    """What came out, and the gradients of a loss that weighs every number of it differently."""
    weights = torch.arange(1, outcome.numel() + 1).sin().view_as(outcome)
    return [outcome, *torch.autograd.grad((weights * outcome).sum(), arguments)]


@pytest.mark.parametrize("dtype,close", [(torch.float64, 1e-11), (torch.float32, 3e-5)])
@pytest.mark.parametrize("with_shift", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_the_norm_is_torchs_with_all_its_gradients(
    size: tuple[int, ...], with_shift: bool, dtype: torch.dtype, close: float
) -> None:
    """Of double precision, among rows that are blank, next to nothing, and huge."""
    x = torch.randn(size, dtype=dtype)
    x[0] = 0
    x[-1, -1] *= 1e-3
    x[-1, 0] *= 1e4
    arguments = [x, torch.randn(size[-1], dtype=dtype), torch.randn(size[-1], dtype=dtype)][: 3 if with_shift else 2]
    for value in arguments:
        value.requires_grad_()
    found = results(numba_layer_norm(*arguments), arguments)
    exact = [value.detach().double().requires_grad_() for value in arguments]
    expected = [value.to(dtype) for value in results(layer_norm(*exact), exact)]
    torch.testing.assert_close(found, expected, rtol=close, atol=close)
    with torch.no_grad():
        assert torch.equal(numba_layer_norm(*arguments), found[0])


@pytest.mark.parametrize("size", SIZES)
def test_the_end_of_a_block_is_its_input_beside_a_glu(size: tuple[int, ...]) -> None:
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    m = (5 * torch.randn(*size[:-1], 2 * size[-1], dtype=torch.float64)).requires_grad_()
    found, expected = results(glu_beside(x, m, "numba"), [x, m]), results(x + F.glu(m), [x, m])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(glu_beside(x, m, "numba"), found[0])
