"""Compiled hidden layers against PyTorch's."""

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers.layer_norm import LayerNorm
from mneme.controllers.mlp import dense, layers_of
from mneme.controllers.scans.layer_step import LANES
from mneme.controllers.scans.rows.dense import DenseLayers


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("dtype,close", [(torch.float64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("lanes,inputs,widths", [(2, 3, (5,)), (LANES + 3, 33, (64, 7)), (2 * LANES, 1, (2, 40, 33))])
@pytest.mark.parametrize("normed", [False, True])
@torch.no_grad()
def test_they_are_pytorchs(
    normed: bool, lanes: int, inputs: int, widths: tuple[int, ...], dtype: torch.dtype, close: float
) -> None:
    network, norm = dense(inputs, widths, Generator().manual_seed(0)).to(dtype), LayerNorm(inputs).to(dtype)
    for parameter in (*network.parameters(), *norm.parameters()):
        parameter.add_(0.1 * drawn(*parameter.shape, dtype=dtype))
    compiled = DenseLayers(layers_of(network), norm if normed else None)
    x = drawn(lanes, inputs, dtype=dtype)
    expected = network(norm(x) if normed else x)
    torch.testing.assert_close(compiled(x), expected, rtol=close, atol=close)
    assert compiled(x).data_ptr() == compiled(x.t().contiguous().t()).data_ptr()
    fewer = compiled(x[:1])
    torch.testing.assert_close(fewer, expected[:1], rtol=close, atol=close)


def test_what_is_no_number_stays_none() -> None:
    network = dense(2, (3,), Generator().manual_seed(0))
    y = DenseLayers(layers_of(network))(torch.tensor([[torch.nan, 1.0], [1.0, 1.0]]))
    assert y[0].isnan().all() and y[1].isfinite().all()
