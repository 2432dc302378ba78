"""The selective scan against a loop over its cell that autograd differentiates."""

import pytest
import torch
from torch import Tensor

from mneme.controllers.scans.selective import torch as in_torch
from mneme.controllers.scans.selective.cell import SelectiveInputs, SelectiveParameters, selective_cell
from mneme.controllers.scans.selective.scan import selective_scan, selective_step
from tests.controllers.published import SELECTIVE_SCAN, mamba_ssm, module

CHANNELS, STATES = 5, 3
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
backends = pytest.mark.parametrize("backend", ["torch", "numba"])

Problem = tuple[SelectiveInputs, Tensor, Tensor, Tensor, SelectiveParameters]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_torch, "LANES", 3)
    monkeypatch.setattr(in_torch, "ROWS", 12)


def problem(steps: int, lanes: int, resets: float, dtype: torch.dtype = torch.float64) -> Problem:
    """Inputs, flags, state, initial state and parameters; all need gradients."""
    torch.manual_seed(steps + 10 * lanes)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    channels = [leaf(steps, lanes, CHANNELS) for _ in range(3)]
    x = SelectiveInputs(*channels, *(leaf(steps, lanes, STATES) for _ in range(2)))
    reset = torch.rand(steps, lanes) < resets
    parameters = SelectiveParameters(leaf(CHANNELS, STATES), leaf(CHANNELS))
    return x, reset, leaf(lanes, STATES, CHANNELS), leaf(STATES, CHANNELS), parameters


def loop(
    x: SelectiveInputs, reset: Tensor, h: Tensor, initial: Tensor, p: SelectiveParameters
) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(len(reset)):
        h = torch.where(reset[t].view(-1, 1, 1), initial, h)
        y, h = selective_cell(SelectiveInputs(*(value[t] for value in x)), h, p)
        outputs.append(y)
    return torch.stack(outputs), h


def gradients(y: Tensor, last: Tensor, arguments: Problem) -> tuple[Tensor, ...]:
    """Of a loss that weighs every output and every last state differently."""
    x, _, h, initial, p = arguments
    weights = [torch.arange(1, v.numel() + 1, dtype=v.dtype).sin().view_as(v) for v in (y, last)]
    return torch.autograd.grad((weights[0] * y).sum() + (weights[1] * last).sum(), [*x, h, initial, *p])


@backends
@pytest.mark.parametrize("resets", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("lanes", [1, 3, 19])
@pytest.mark.parametrize("steps", [1, 4, 5, 16, 35])
def test_the_scan_is_the_loop_with_all_its_gradients(steps: int, lanes: int, resets: float, backend: str) -> None:
    arguments = problem(steps, lanes, resets)
    expected, actual = loop(*arguments), selective_scan(*arguments, backend)
    torch.testing.assert_close(actual, expected, **TIGHT)
    torch.testing.assert_close(gradients(*actual, arguments), gradients(*expected, arguments), **TIGHT)


@backends
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_without_gradients_the_values_are_the_same_and_the_last_state_is_a_copy(steps: int, backend: str) -> None:
    arguments = problem(steps, 4, 0.2)
    given = arguments[2].detach().clone()
    expected_y, expected_last = selective_scan(*arguments, backend)
    with torch.no_grad():
        y, last = selective_scan(*arguments, backend)
    torch.testing.assert_close(arguments[2].detach(), given, rtol=0, atol=0)
    torch.testing.assert_close((y, last), (expected_y, expected_last), rtol=0, atol=0)
    last.zero_()
    torch.testing.assert_close(y, expected_y, rtol=0, atol=0)


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_step_that_writes_in_place_is_the_cell(dtype: torch.dtype, tolerance: float) -> None:
    x, _, h, _, p = problem(1, 7, 0.0, dtype)
    inputs = SelectiveInputs(*(value[0] for value in x))
    with torch.no_grad():
        expected = selective_cell(inputs, h, p)
        y = selective_step(inputs, h, p)
        torch.testing.assert_close((y, h), expected, rtol=tolerance, atol=tolerance)


@backends
def test_extreme_steps_stay_finite(backend: str) -> None:
    """softplus underflows to 0 at one end, where the state stays; at the other the decay does, where it goes."""
    x, reset, h, initial, p = problem(6, 2, 0.2, torch.float32)
    for size in (-200.0, 200.0):
        extreme = x._replace(dt=torch.full_like(x.dt, size).requires_grad_())
        y, last = selective_scan(extreme, reset, h, initial, p, backend)
        grads = gradients(y, last, (extreme, reset, h, initial, p))
        assert all(value.isfinite().all() for value in (y, last, *grads))


@backends
def test_the_last_state_may_be_overwritten_before_the_backward_pass(backend: str) -> None:
    arguments = problem(5, 4, 0.2)
    expected = gradients(*selective_scan(*arguments, backend), arguments)
    y, last = selective_scan(*arguments, backend)
    last.detach().zero_()
    torch.testing.assert_close(gradients(y, last, arguments), expected, rtol=0, atol=0)


def test_the_scan_is_mamba_ssms_reference() -> None:
    """Which computes in float32, starts from zeros and knows no resets."""
    x, _, h, initial, p = arguments = problem(11, 4, 0.0, torch.float32)
    actual = selective_scan(x, arguments[1], torch.zeros_like(h), initial, p)
    u, dt, z, write, read = (value.permute(1, 2, 0) for value in x)
    with mamba_ssm(SELECTIVE_SCAN):
        reference = module("ops.selective_scan_interface").selective_scan_ref
        y, last = reference(u, dt, -p.a_log.exp(), write, read, p.skip, z, None, True, return_last_state=True)
    expected = y.permute(2, 0, 1), last.transpose(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    leaves = [*x, *p]
    weights = [torch.arange(1, v.numel() + 1, dtype=v.dtype).sin().view_as(v) for v in expected]
    slopes = [torch.autograd.grad(outputs, leaves, weights) for outputs in (actual, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)
