"""What numba compiles of GRU, LSTM and bistable cells, against the loop over their cells."""

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.scans.blocks import ROWS
from tests.controllers.scans.weighed import gradients_of_two_layouts, scan_and_loop, with_gradients

KINDS = {"gru": {}, "lstm": {}, "nbrc": {}, "brc": {"kind": "nbrc", "cellular": True}}
kinds = pytest.mark.parametrize("kind", KINDS)


def controller(kind: str, hidden: int, input_size: int = 3, backend: str = "numba") -> Controller:
    chosen = {"kind": kind, **KINDS[kind]}
    settings = ControllerSettings(hidden_size=hidden, initial_carry="learned", backend=backend, **chosen)  # type: ignore[arg-type]
    built = build_controller(settings, input_size, 10, Generator().manual_seed(0))
    assert built.backend_on(torch.device("cpu")) == backend
    return built


def drawn(built: Controller, steps: int, lanes: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Inputs, flags and a carry: the same numbers for each type."""
    generator = Generator().manual_seed(3)
    x = torch.randn(steps, lanes, built.input_size, generator=generator).to(built.dtype)
    reset = torch.rand(steps, lanes, generator=generator) < 0.2
    carry = {
        name: torch.randn(value.shape, generator=generator).to(built.dtype)
        for name, value in built.initial_carry(lanes).items()
    }
    return x, reset, carry


def results(built: Controller, steps: int, lanes: int) -> list[Tensor]:
    x, reset, carry = drawn(built, steps, lanes)
    inputs = [x.requires_grad_(), *(value.requires_grad_() for value in carry.values()), *built.parameters()]
    y, last = built.scan(x, reset, carry)
    return with_gradients([y, *last.values()], inputs)


@kinds
@pytest.mark.parametrize(
    "steps,lanes,inputs,hidden",
    [(1, 1, 2, 2), (7, 1, 3, 5), (2, 2, 3, 7), (9, 3, 4, 16), (20, 5, 6, 40), (12, 9, 3, 130)],
)  # fmt: skip
def test_it_is_the_loop_with_all_its_gradients(kind: str, steps: int, lanes: int, inputs: int, hidden: int) -> None:
    actual, expected = scan_and_loop(controller(kind, hidden, inputs), steps, lanes)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@kinds
def test_blocks_hand_on_their_states(kind: str) -> None:
    steps, lanes = 8, ROWS // 3 + 1
    actual, expected = scan_and_loop(controller(kind, 3), steps, lanes)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@kinds
@pytest.mark.parametrize("lanes", [1, 30])
def test_in_single_precision_it_stays_as_near_to_the_exact_numbers_as_torch_does(kind: str, lanes: int) -> None:
    exact = results(controller(kind, 24).double(), 50, lanes)
    ours, torchs = (results(controller(kind, 24, backend=backend), 50, lanes) for backend in ("numba", "torch"))
    for value, other, wanted in zip(ours, torchs, exact, strict=True):
        error, bound = (value.double() - wanted).norm(), (other.double() - wanted).norm()
        assert error <= 3 * bound + 1e-6 * wanted.norm(), (error, bound)


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [2, 40])
def test_without_gradients_the_numbers_are_the_same_and_nothing_given_is_written_to(
    kind: str, dtype: torch.dtype, steps: int
) -> None:
    built = controller(kind, 12).to(dtype)
    x, reset, carry = drawn(built, steps, 6)
    given = [x.clone(), reset.clone(), *(value.clone() for value in carry.values())]
    expected = built.scan(x, reset, carry)
    with torch.no_grad():
        actual = built.scan(x, reset, carry)
    torch.testing.assert_close(actual, tuple(expected), rtol=0, atol=0)
    torch.testing.assert_close([x, reset, *carry.values()], given, rtol=0, atol=0)


@kinds
def test_a_second_way_back_through_what_was_kept_is_the_same(kind: str) -> None:
    built = controller(kind, 9)
    x, reset, carry = drawn(built, 11, 5)
    y, _ = built.scan(x, reset, carry)
    once, again = (torch.autograd.grad(y.sum(), list(built.parameters()), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(once, again, rtol=0, atol=0)


@kinds
def test_gradients_that_come_in_another_layout_are_the_same(kind: str) -> None:
    torch.testing.assert_close(*gradients_of_two_layouts(controller(kind, 4), 3, 5), rtol=0, atol=0)


@kinds
def test_a_carry_that_does_not_lie_in_order_is_read_where_it_lies(kind: str) -> None:
    built = controller(kind, 8)
    x, reset, carry = drawn(built, 6, 4)
    turned = {name: value.t().contiguous().t() for name, value in carry.items()}
    turned_x = x.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(built.scan(turned_x, reset, turned), built.scan(x, reset, carry))
