"""The Triton kernels of the selective scan, under Triton's interpreter, against the loop over its cell."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.contract import CHECKS, Check
from mneme.controllers.scans.selective.cell import SelectiveInputs
from mneme.controllers.scans.selective.scan import selective_scan
from tests.controllers.scans.selective.test_scan import CHANNELS, Problem, gradients, loop, problem
from tests.controllers.scans.weighed import with_gradients

QUICK = ("shapes", "initial carry", "memory layout")  # even when interpreted
ENDLESS = ("finite differences", "... at any width")  # when interpreted: hundreds of scans, or of lanes


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Their module, with blocks so small that there are several; importing it makes them interpreted ones."""
    pytest.importorskip("triton", reason="triton is for Linux")
    if torch.cuda.is_available():
        pytest.skip("the interpreter stands in for a GPU where there is none")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    from mneme.controllers.scans.selective import triton

    monkeypatch.setattr(triton, "BLOCK_I", 4)
    assert CHANNELS % triton.BLOCK_I
    return triton


def triton_scan(x: SelectiveInputs, reset: Tensor, h: Tensor, initial: Tensor, p: object) -> tuple[Tensor, Tensor]:
    return selective_scan(x, reset, h, initial, p, "triton")  # type: ignore[arg-type]


def both(arguments: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, last states and all gradients: of the kernels, and of the loop."""
    actual, expected = triton_scan(*arguments), loop(*arguments)
    return [*actual, *gradients(*actual, arguments)], [*expected, *gradients(*expected, arguments)]


@pytest.mark.parametrize("resets", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps,lanes", [(1, 1), (1, 2), (4, 1), (11, 2)])
def test_the_kernels_are_the_loop_with_all_its_gradients(steps: int, lanes: int, resets: float) -> None:
    torch.testing.assert_close(*both(problem(steps, lanes, resets)), rtol=1e-10, atol=1e-10)


def test_no_gradient_reaches_a_state_that_is_reset_at_the_first_step() -> None:
    arguments = problem(7, 2, 0.0)
    arguments[1][0, 0] = arguments[1][3, 1] = True
    actual, expected = both(arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    dh = actual[2 + len(arguments[0])]
    assert torch.count_nonzero(dh[0]) == 0 and torch.count_nonzero(dh[1])


def test_in_float32_they_are_the_loop_in_float32() -> None:
    arguments = problem(11, 2, 0.2, torch.float32)
    actual, expected = both(arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert all(value.dtype == torch.float32 for value in actual)


def test_half_precision_stays_near_the_loop_in_double_precision() -> None:
    exact = problem(9, 2, 0.2)
    rounded: Problem = (
        SelectiveInputs(*(value.detach().half().requires_grad_() for value in exact[0])),
        exact[1],
        *(value.detach().half().requires_grad_() for value in exact[2:4]),
        type(exact[4])(*(value.detach().half().requires_grad_() for value in exact[4])),
    )
    actual, expected = triton_scan(*rounded), loop(*exact)
    assert all(value.dtype == torch.float16 for value in actual)
    found = gradients(*(value.double() for value in actual), rounded)
    for value, wanted in zip((*actual, *found), (*expected, *gradients(*expected, exact)), strict=True):
        assert (value.double() - wanted).norm() < 1e-2 * wanted.norm()


def test_without_gradients_the_values_are_the_same_and_the_last_state_is_a_copy() -> None:
    arguments = problem(9, 2, 0.2)
    expected = triton_scan(*arguments)
    with torch.no_grad():
        y, last = triton_scan(*arguments)
    torch.testing.assert_close((y, last), expected, rtol=0, atol=0)
    y, last = triton_scan(*arguments)
    slopes = gradients(y, last, arguments)
    y, last = triton_scan(*arguments)
    last.detach().zero_()
    torch.testing.assert_close(gradients(y, last, arguments), slopes, rtol=0, atol=0)


def test_strided_views_and_gradients_in_another_layout_are_taken() -> None:
    arguments = problem(5, 2, 0.2)
    x, *rest = arguments
    turned = SelectiveInputs(*(value.transpose(0, 1).contiguous().transpose(0, 1) for value in x))
    expected = triton_scan(*arguments)
    actual = triton_scan(turned, *rest)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    slopes = [torch.randn_like(value) for value in expected]
    apart = [slope.transpose(0, 1).contiguous().transpose(0, 1) for slope in slopes]
    leaves = [*x, *rest[1:3], *rest[3]]
    found = (torch.autograd.grad(actual, leaves, apart), torch.autograd.grad(expected, leaves, slopes))
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # whose inverse is 0, as it should be
def test_steps_of_any_length_are_as_exact_as_torchs() -> None:
    """exp(a) is lost in 1 + exp(a) where a is below -16 in float32, and at 200 it is infinite."""
    x, _, h, initial, p = problem(9, 1, 0.0, torch.float32)
    dt = torch.tensor([-200.0, -80, -30, -17, -8, -1, 19, 21, 200]).view(9, 1, 1).expand_as(x.dt)
    reset = torch.ones(9, 1, dtype=torch.bool)
    only_written = x._replace(
        u=torch.ones_like(x.u), dt=dt, z=torch.full_like(x.z, 30.0), write=torch.ones_like(x.write)
    )
    y, last = triton_scan(only_written, reset, h, torch.zeros_like(initial), p._replace(skip=torch.zeros_like(p.skip)))
    expected = x.read.sum(2, keepdim=True) * F.softplus(dt) * 30
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=0)
    for size in (-200.0, 200.0):
        extreme = x._replace(dt=torch.full_like(x.dt, size).requires_grad_())
        y, last = triton_scan(extreme, reset, h, initial, p)
        grads = gradients(y, last, (extreme, reset, h, initial, p))
        assert all(value.isfinite().all() for value in (y, last, *grads))


def test_a_gru_above_them_gives_the_same_outputs_and_gradients() -> None:
    x, reset = torch.randn(5, 2, 3), torch.rand(5, 2) < 0.3
    results = []
    for backend in ("torch", "triton"):
        settings = ControllerSettings(kind="mamba_gru", hidden_size=3, initial_carry="learned", backend=backend)
        built = build_controller(settings, 3, 10, Generator().manual_seed(0))
        assert built.backend_on(x.device) == backend
        y, carry = built.scan(x, reset, built.initial_carry(2))
        outputs = [y, *carry.values()]
        results.append(with_gradients(outputs, list(built.parameters())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def controller(kind: str, input_size: int, generator: Generator) -> Controller:
    settings = ControllerSettings(kind=kind, hidden_size=6, initial_carry="learned", backend="triton", d_state=3)
    built = build_controller(settings, input_size, 10, generator)
    assert built.backend_on(torch.device("cpu")) == "triton"
    return built


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, id=check.name.replace(" ", "-"), marks=[pytest.mark.slow] * (check.name not in QUICK))
        for check in CHECKS
        if check.name not in ENDLESS
    ],
)
def test_the_kernels_keep_the_contract(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, check: Check) -> None:
    monkeypatch.setattr(kernels, "BLOCK_I", 128)  # fewer programs: they run one after another
    finding = check.run(lambda input_size, generator: controller("mamba", input_size, generator))
    assert finding.passed, finding
