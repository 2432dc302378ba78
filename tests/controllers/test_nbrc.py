"""Bistable cells against the published equations in plain numbers, and what bistable means."""

import math

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import (
    Actor,
    Categorical,
    Controller,
    ControllerSettings,
    PolicySettings,
    PolicySpec,
    Vector,
    build_controller,
    build_policy,
)
from mneme.controllers.contract import CHECKS, Check
from mneme.controllers.nbrc import NbrcController
from mneme.controllers.scans.blocks import ROWS
from tests.controllers.scans.weighed import scan_and_loop

forms = pytest.mark.parametrize("cellular", [False, True], ids=["nbrc", "brc"])
backends = pytest.mark.parametrize("backend", ["numba", "torch"])


def settings(cellular: bool, hidden: int = 6, backend: str = "auto", **chosen: object) -> ControllerSettings:
    return ControllerSettings(kind="nbrc", cellular=cellular, hidden_size=hidden, backend=backend, **chosen)  # type: ignore[arg-type]


def built(cellular: bool, hidden: int = 6, horizon: int = 10, **chosen: object) -> NbrcController:
    made = build_controller(settings(cellular, hidden, **chosen), 3, horizon, Generator().manual_seed(0))  # type: ignore[arg-type]
    assert isinstance(made, NbrcController)
    return made


def published(x: list[float], h: list[float], controller: NbrcController) -> list[float]:
    """Equations 3 to 5 of the paper unit by unit, with the biases of its authors' code."""
    H, after = len(h), []
    w_ih, w_hh, bias = controller.weight_ih.tolist(), controller.weight_hh.tolist(), controller.bias.tolist()

    def of_input(row: int) -> float:
        return sum(w * value for w, value in zip(w_ih[row], x, strict=True))

    def of_state(row: int) -> float:
        weights = w_hh[row]
        if isinstance(weights, float):
            return float(weights * h[row % H])
        return float(sum(w * value for w, value in zip(weights, h, strict=True)))

    for i in range(H):
        a = 1 + math.tanh(of_input(i) + of_state(i) + bias[i])
        c = 1 / (1 + math.exp(-(of_input(H + i) + of_state(H + i) + bias[H + i])))
        after.append(c * h[i] + (1 - c) * math.tanh(of_input(2 * H + i) + a * h[i]))
    return after


@forms
@pytest.mark.parametrize("backend", ["numba", "torch", "reference"])
def test_it_is_the_published_cell(backend: str, cellular: bool) -> None:
    controller = built(cellular, 5, backend=backend).double()
    x = torch.randn(9, 1, 3, generator=Generator().manual_seed(1), dtype=torch.float64)
    h = [0.3, -0.8, 0.1, 0.0, 0.9]
    y, last = controller.scan(x, torch.zeros(9, 1, dtype=torch.bool), {"h": torch.tensor([h], dtype=torch.float64)})
    for t in range(9):
        h = published(x[t, 0].tolist(), h, controller)
        torch.testing.assert_close(y[t, 0].tolist(), h, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last["h"], y[-1], rtol=0, atol=0)


@forms
@backends
@pytest.mark.parametrize("steps,lanes,hidden", [(1, 1, 2), (7, 1, 5), (20, 5, 40), (8, ROWS // 3 + 1, 3)])
def test_a_scan_is_the_loop_with_all_its_gradients(
    steps: int, lanes: int, hidden: int, backend: str, cellular: bool
) -> None:
    actual, expected = scan_and_loop(built(cellular, hidden, backend=backend, initial_carry="learned"), steps, lanes)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@backends
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name.replace(" ", "-"))
def test_the_cellular_form_keeps_the_contract(check: Check, backend: str) -> None:
    def build(input_size: int, generator: Generator) -> Controller:
        return build_controller(settings(True, initial_carry="learned", backend=backend), input_size, 10, generator)

    finding = check.run(build)
    assert finding.passed, finding


@forms
@pytest.mark.parametrize("lanes", [(3, 3), (2, 5)])
def test_it_acts_as_it_scans(lanes: tuple[int, int], cellular: bool) -> None:
    policy_settings = PolicySettings(controller=settings(cellular, initial_carry="learned"))
    policy = build_policy(PolicySpec({"x": Vector(3)}, Categorical(4)), policy_settings, 10, seed=0)
    actor = Actor(policy)
    for B in lanes:
        x, uniform = torch.randn(6, B, 3), torch.rand(6, B, 1)
        reset = torch.rand(6, B) < 0.3
        own, carry = policy.initial_carry(B), policy.initial_carry(B)
        for t in range(6):
            given = actor.act({"x": x[t]}, reset[t], own, uniform[t])
            expected = policy.act({"x": x[t]}, reset[t], carry, uniform[t])
            torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
            own, carry = given.carry, expected.carry


def test_it_begins_with_time_constants_over_the_horizon_and_about_to_be_bistable() -> None:
    b_a, b_c = built(False, 256, horizon=100).bias.chunk(2)
    c = b_c.sigmoid()
    assert torch.count_nonzero(b_a) == 0
    assert c.min() >= 0.5 and c.max() < 1 - 1 / 101 and c.median() > 0.95
    assert torch.count_nonzero(built(False, 256, horizon=100, chrono=False).bias) == 0


def states_after(controller: NbrcController, blank_steps: int) -> Tensor:
    """The last of many blank steps after a step with one of two signs."""
    x = torch.zeros(blank_steps + 1, 2, 3)
    x[0] = torch.tensor([[1.0], [-1.0]])
    with torch.no_grad():
        y, _ = controller.scan(x, torch.zeros(blank_steps + 1, 2, dtype=torch.bool), controller.initial_carry(2))
    return y[-1]


@forms
def test_two_states_of_rest_hold_a_bit_for_good_and_one_forgets_it(cellular: bool) -> None:
    controller = built(cellular, 4)
    with torch.no_grad():
        controller.weight_hh.zero_()
        controller.weight_ih[:8].zero_()
        controller.bias[4:] = 2.0
        for b_a, rest in ((0.4, True), (-0.4, False)):
            controller.bias[:4] = b_a
            plus, minus = states_after(controller, 20_000)
            if rest:
                torch.testing.assert_close(plus, -minus)
                a = 1 + math.tanh(b_a)
                torch.testing.assert_close(torch.tanh(a * plus), plus, rtol=1e-5, atol=1e-6)
                assert plus.abs().min() > 0.5
            else:
                assert plus.abs().max() < 1e-6 and minus.abs().max() < 1e-6


@forms
@backends
def test_blank_steps_write_nothing(backend: str, cellular: bool) -> None:
    controller = built(cellular, backend=backend)
    y, _ = controller.scan(torch.zeros(50, 2, 3), torch.zeros(50, 2, dtype=torch.bool), controller.initial_carry(2))
    assert torch.count_nonzero(y) == 0
