"""The causal convolution against torch's own, and against a slow loop where there are resets."""

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mneme.controllers.scans.convolution.cell import silu_convolution_cell
from mneme.controllers.scans.convolution.scan import silu_convolution
from mneme.controllers.scans.convolution.torch import convolution_scan
from tests.controllers.scans.weighed import with_gradients

B, C, K = 3, 4, 4
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def draw(T: int) -> list[Tensor]:
    """x, window, initial window, weight and bias, in float64 and differentiable."""
    generator = Generator().manual_seed(0)
    shapes = [(T, B, C), (B, K - 1, C), (K - 1, C), (C, K), (C,)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def slow(x: Tensor, window: Tensor, initial: Tensor, weight: Tensor, bias: Tensor, reset: Tensor) -> list[Tensor]:
    outputs = []
    for x_BC, reset_B in zip(x, reset, strict=True):
        window = torch.where(reset_B.view(-1, 1, 1), initial, window)
        y_BC, window = silu_convolution_cell(x_BC, window, weight, bias)
        outputs.append(y_BC)
    return [torch.stack(outputs), window]


@pytest.mark.parametrize("T", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("resets", [0.0, 0.3, 1.0])
def test_the_scan_is_the_loop(T: int, resets: float) -> None:
    inputs = draw(T)
    x, window, initial, weight, bias = inputs
    reset = torch.rand(T, B, generator=Generator().manual_seed(1)) < resets
    actual = with_gradients(list(silu_convolution(x, reset, window, initial, weight, bias)), inputs)
    torch.testing.assert_close(actual, with_gradients(slow(*inputs, reset), inputs), **TIGHT)


def test_without_resets_it_is_conv1d() -> None:
    x, window, initial, weight, bias = draw(9)
    y, last = convolution_scan(x, torch.zeros(9, B, dtype=torch.bool), window, initial, weight, bias)
    seen_BCT = torch.cat([window, x.transpose(0, 1)], 1).transpose(1, 2)
    expected_BCT = F.conv1d(seen_BCT, weight.unsqueeze(1), bias, groups=C)
    torch.testing.assert_close(y, expected_BCT.permute(2, 0, 1), **TIGHT)
    torch.testing.assert_close(last, x[-(K - 1) :].transpose(0, 1), **TIGHT)
