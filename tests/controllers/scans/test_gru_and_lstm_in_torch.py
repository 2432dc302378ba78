"""The scans against torch's own recurrent modules, which share their weight layout."""

import pytest
import torch
from torch import nn

from mneme.controllers.scans.gru.cell import GruParameters
from mneme.controllers.scans.gru.scan import gru_scan
from mneme.controllers.scans.lstm.cell import LstmParameters, LstmState
from mneme.controllers.scans.lstm.scan import lstm_scan


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_gru_is_torch_gru(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    module = nn.GRU(5, 16).to(dtype)
    x, h = (
        torch.randn(37, 3, 5, dtype=dtype, requires_grad=True),
        torch.randn(3, 16, dtype=dtype, requires_grad=True),
    )
    weight = torch.randn(37, 3, 16, dtype=dtype)
    y_ref, h_ref = module(x, h.unsqueeze(0))
    p = GruParameters(*module.parameters())
    y, last = gru_scan(x, torch.zeros(37, 3, dtype=torch.bool), h, torch.zeros(16, dtype=dtype), p)
    inputs = [x, h, *module.parameters()]
    expected = (y_ref, h_ref[0], *torch.autograd.grad((y_ref * weight).sum() + h_ref.sum(), inputs))
    actual = (y, last, *torch.autograd.grad((y * weight).sum() + last.sum(), inputs))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_lstm_is_torch_lstm(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    module = nn.LSTM(5, 16).to(dtype)
    x = torch.randn(37, 3, 5, dtype=dtype, requires_grad=True)
    h, c = (torch.randn(3, 16, dtype=dtype, requires_grad=True) for _ in range(2))
    weight = torch.randn(37, 3, 16, dtype=dtype)
    y_ref, (h_ref, c_ref) = module(x, (h.unsqueeze(0), c.unsqueeze(0)))
    p, zero = LstmParameters(*module.parameters()), torch.zeros(16, dtype=dtype)
    no_reset = torch.zeros(37, 3, dtype=torch.bool)
    y, last = lstm_scan(x, no_reset, LstmState(h, c), LstmState(zero, zero), p)
    inputs = [x, h, c, *module.parameters()]
    loss_ref = (y_ref * weight).sum() + h_ref.sum() + 2 * c_ref.sum()
    loss = (y * weight).sum() + last.h.sum() + 2 * last.c.sum()
    expected = (y_ref, h_ref[0], c_ref[0], *torch.autograd.grad(loss_ref, inputs))
    actual = (y, *last, *torch.autograd.grad(loss, inputs))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=10 * tolerance)


def test_saturated_gates_stay_finite() -> None:
    x = torch.tensor([[[1e4]], [[-1e4]], [[1e4]]], requires_grad=True)
    no_reset, zero = torch.zeros(3, 1, dtype=torch.bool), torch.zeros(2)
    for gates in (3, 4):
        weights = [
            torch.ones(gates * 2, 1),
            torch.ones(gates * 2, 2),
            torch.zeros(gates * 2),
            torch.zeros(gates * 2),
        ]
        if gates == 3:
            y, _ = gru_scan(x, no_reset, torch.zeros(1, 2), zero, GruParameters(*weights))
        else:
            start = LstmState(torch.zeros(1, 2), torch.zeros(1, 2))
            y, _ = lstm_scan(x, no_reset, start, LstmState(zero, zero), LstmParameters(*weights))
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert y.isfinite().all() and grad.isfinite().all()
