"""The linear scans, in torch and as a Triton kernel, against a loop that autograd differentiates."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mneme.controllers.scans.linear import torch as linear
from mneme.controllers.scans.linear.scan import linear_scan

Scan = Callable[..., tuple[Tensor, Tensor]]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def loop(a: Tensor, b: Tensor, reset: Tensor, h: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    states = []
    for t in range(len(b)):
        h = torch.where(reset[t].unsqueeze(1), initial, h)
        h = (a[t] if a.dim() == 3 else a) * h + b[t]
        states.append(h)
    return torch.stack(states), h


def problem(
    steps: int, lanes: int, channels: int, resets: float, constant: bool, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Factors (constant ones are complex, others real), inputs, flags, carry, initial state; all need gradients."""
    torch.manual_seed(steps + lanes)
    kind = torch.complex128 if constant else dtype
    a = torch.randn(channels, dtype=kind) / 2 if constant else torch.rand(steps, lanes, channels, dtype=kind)
    b, h, initial = (torch.randn(*s, channels, dtype=kind) for s in ((steps, lanes), (lanes,), ()))
    reset = torch.rand(steps, lanes) < resets
    return [a.requires_grad_(), b.requires_grad_(), reset, h.requires_grad_(), initial.requires_grad_()]


def results(scan: Scan, arguments: list[Tensor]) -> list[Tensor]:
    """Outputs, last state and every gradient of a loss that weighs each of them differently."""
    y, last = scan(*arguments)
    weights = [torch.arange(1, v.numel() + 1, dtype=torch.float64).sin().view_as(v) for v in (y, last)]
    loss = sum((w * v * (2 + 1j)).real.sum() for w, v in zip(weights, (y, last), strict=True))
    return [y, last, *torch.autograd.grad(loss, [value for value in arguments if value.requires_grad])]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("resets", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps,lanes", [(1, 3), (2, 1), (17, 3), (10, 300), (7, 1500)])
def test_the_scan_is_the_loop_with_all_its_gradients(steps: int, lanes: int, resets: float, constant: bool) -> None:
    arguments = problem(steps, lanes, 4, resets, constant)
    torch.testing.assert_close(results(linear_scan, arguments), results(loop, arguments), **TIGHT)


@pytest.mark.parametrize("resets", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 16, 37])
def test_constant_factors_give_the_same_in_the_form_for_gpus(
    monkeypatch: pytest.MonkeyPatch, steps: int, resets: float
) -> None:
    monkeypatch.setattr(linear, "_at_once", lambda a, device: True)
    arguments = problem(steps, 3, 4, resets, constant=True)
    torch.testing.assert_close(results(linear_scan, arguments), results(loop, arguments), **TIGHT)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("steps", [1, 9])
def test_without_gradients_the_values_are_the_same_and_the_last_state_is_a_copy(steps: int, constant: bool) -> None:
    arguments = problem(steps, 3, 4, 0.2, constant)
    expected = loop(*arguments)
    with torch.no_grad():
        y, last = linear_scan(*arguments)
    torch.testing.assert_close((y, last), expected, **TIGHT)
    last.zero_()
    torch.testing.assert_close(y, expected[0], **TIGHT)


@pytest.mark.parametrize("resets", [0.0, 0.2])
def test_factors_of_zero_and_next_to_it_are_exact(resets: float) -> None:
    arguments = problem(33, 3, 4, resets, constant=False)
    with torch.no_grad():
        arguments[0][::5] = 0
        arguments[0][1::5] = 1e-300
    actual = results(linear_scan, arguments)
    assert all(value.isfinite().all() for value in actual)
    torch.testing.assert_close(actual, results(loop, arguments), **TIGHT)


@pytest.fixture
def triton_scan(monkeypatch: pytest.MonkeyPatch) -> Scan:
    """The kernel, on this CPU, in tiles so small that few steps cross their borders."""
    pytest.importorskip("triton", reason="triton is for Linux")
    if torch.cuda.is_available():
        pytest.skip("the interpreter stands in for a GPU where there is none")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from mneme.controllers.scans.linear import triton as triton_linear

    monkeypatch.setattr(triton_linear, "BLOCK_T", 4)
    monkeypatch.setattr(triton_linear, "BLOCK_C", 8)
    return lambda *arguments: linear_scan(*arguments, backend="triton")


@pytest.mark.parametrize("resets", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 13])
def test_the_kernel_is_the_loop_with_all_its_gradients(triton_scan: Scan, steps: int, resets: float) -> None:
    arguments = problem(steps, 2, 7, resets, constant=False)
    torch.testing.assert_close(results(triton_scan, arguments), results(loop, arguments), **TIGHT)


def test_the_kernel_computes_in_float32_what_comes_in_float32(triton_scan: Scan) -> None:
    arguments = problem(13, 2, 7, 0.2, constant=False, dtype=torch.float32)
    actual, expected = results(triton_scan, arguments), results(loop, arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert all(value.dtype == torch.float32 for value in actual)


def test_the_kernel_takes_strided_views(triton_scan: Scan) -> None:
    a, b, reset, h, initial = problem(6, 3, 5, 0.2, constant=False)
    actual = triton_scan(a, b.transpose(0, 1).contiguous().transpose(0, 1), reset, h, initial)
    torch.testing.assert_close(actual, loop(a, b, reset, h, initial), **TIGHT)
