"""The compiled linear scans against the scan in PyTorch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mneme.controllers.scans.linear.numba import numba_constant_scan, numba_gated_scan
from mneme.controllers.scans.linear.scan import linear_scan

Scan = Callable[..., tuple[Tensor, Tensor]]


def gated(
    sn: Tensor, reset: Tensor, h: Tensor, initial: Tensor, cut: Tensor | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    s, n = sn.chunk(2, -1)
    keep = torch.sigmoid(s)
    return linear_scan(keep, (1 - keep) * n, reset, h, initial, cut_TB=cut)


def constant(
    a: Tensor, b: Tensor, reset: Tensor, h: Tensor, initial: Tensor, cut: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    b, h, initial = (torch.complex(*x.chunk(2, -1)) for x in (b, h, initial))
    states = linear_scan(torch.complex(*a), b, reset, h, initial, cut_TB=cut)
    return tuple(torch.cat([y.real, y.imag], -1) for y in states)  # type: ignore[return-value]


def results(scan: Scan, arguments: list[Tensor], cut: Tensor | None) -> list[Tensor]:
    """Outputs, last state and every gradient of a loss that weighs each of them differently."""
    outcome = scan(*arguments, cut)
    weights = [torch.arange(1, y.numel() + 1).sin().view_as(y) for y in outcome]
    loss = torch.stack([(w * y).sum() for w, y in zip(weights, outcome, strict=True)]).sum()
    return [*outcome, *torch.autograd.grad(loss, [x for x in arguments if x.requires_grad])]


@pytest.mark.parametrize("scan,plain", [(numba_gated_scan, gated), (numba_constant_scan, constant)])
@pytest.mark.parametrize("resets,cuts", [(0.0, None), (0.3, None), (0.3, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("steps,lanes,channels", [(1, 1, 1), (9, 3, 5), (20, 2, 32)])
def test_the_scan_is_torchs_with_all_its_gradients(
    scan: Scan, plain: Scan, resets: float, cuts: float | None, steps: int, lanes: int, channels: int
) -> None:
    both, state = 2 * channels, channels if plain is gated else 2 * channels
    given, h, initial = (
        torch.randn(*size, dtype=torch.float64) for size in ((steps, lanes, both), (lanes, state), (state,))
    )
    factors = [] if plain is gated else [0.6 * torch.randn(2, channels, dtype=torch.float64)]
    tensors = [x.requires_grad_() for x in (*factors, given)]
    arguments = [*tensors, torch.rand(steps, lanes) < resets, h.requires_grad_(), initial.requires_grad_()]
    cut = None if cuts is None else torch.rand(steps, lanes) < cuts
    found, expected = results(scan, arguments, cut), results(plain, arguments, cut)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        assert torch.equal(scan(*arguments, cut)[0], found[0])
