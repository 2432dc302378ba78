"""The transformer's window, settings and gate; in every variant it keeps the contract."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import Controller, ControllerSettings, TransformerSettings, build_controller
from mneme.controllers.contract import CHECKS, Check
from mneme.controllers.transformer import GruGate, TransformerController

VARIANTS: list[dict[str, Any]] = [
    {"window_size": 2},
    {"window_size": 3, "num_heads": 6},
    {"window_size": 50, "num_heads": 1, "mlp_ratio": 4},
    {"window_size": 5, "gate": "gru"},
]


def make(hidden: int = 8, inputs: int = 5, horizon: int = 10, **kwargs: Any) -> TransformerController:
    settings = TransformerSettings(hidden_size=hidden, **kwargs)
    return TransformerController(inputs, settings, horizon, Generator().manual_seed(0)).double()


def run(controller: Controller, x: Tensor, reset: Tensor) -> Tensor:
    return controller.scan(x, reset, controller.initial_carry(x.shape[1]))[0]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name.replace(" ", "-"))
@pytest.mark.parametrize("kwargs", VARIANTS, ids=str)
def test_every_variant_keeps_the_contract(kwargs: dict[str, Any], check: Check) -> None:
    settings = ControllerSettings(kind="transformer", hidden_size=6, **kwargs)
    finding = check.run(lambda inputs, generator: build_controller(settings, inputs, 10, generator))
    assert finding.passed, finding


@pytest.mark.parametrize("window", [2, 4])
def test_a_step_sees_its_window_and_nothing_else(window: int) -> None:
    controller = make(window_size=window)
    x = torch.randn(9, 1, 5, dtype=torch.float64, requires_grad=True)
    (dx,) = torch.autograd.grad(run(controller, x, torch.zeros(9, 1, dtype=torch.bool))[6].square().sum(), x)
    assert [t for t in range(9) if dx[t].any()] == list(range(7 - window, 7))


@pytest.mark.parametrize("kwargs", [{"window_size": 2}, {"window_size": 3, "num_heads": 8}, {"mlp_ratio": 3}], ids=str)
@torch.no_grad()
def test_compiled_steps_are_the_loop_over_the_cell_in_a_full_window_too(kwargs: dict[str, Any]) -> None:
    controller, generator = make(horizon=5, inputs=8, **kwargs), Generator().manual_seed(1)
    for parameter in controller.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x, reset = torch.randn(20, 7, 8, generator=generator).double(), torch.rand(20, 7, generator=generator) < 0.1
    assert controller.steps_compile(x.device)
    step, carry, found = controller.stepper(), controller.initial_carry(7), []
    for x_BD, reset_B in zip(x, reset, strict=True):
        y_BH, carry = step(x_BD, reset_B, carry)
        found.append(y_BH.clone())
    expected = controller.reference_scan(x, reset, controller.initial_carry(7))
    torch.testing.assert_close((torch.stack(found), carry), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{"gate": "gru"}, {"backend": "torch"}], ids=str)
def test_steps_with_gates_and_those_that_are_to_be_torchs_are_not_compiled(settings: dict[str, Any]) -> None:
    controller = build_controller(ControllerSettings(kind="transformer", **settings), 3, 5, Generator().manual_seed(0))
    assert not controller.steps_compile(torch.device("cpu"))
    assert controller.stepper() == controller._reset_and_step


def test_the_window_comes_from_the_horizon_unless_it_is_given() -> None:
    assert make(horizon=10).initial()["memory"].shape == (10, 4)
    assert make(horizon=100_000).initial()["memory"].shape == (511, 4)
    assert make(horizon=10, window_size=700).initial()["memory"].shape == (699, 4)


@pytest.mark.parametrize("hidden,heads", [(128, 4), (6, 2), (7, 1)])
def test_there_are_four_heads_where_that_divides_the_width(hidden: int, heads: int) -> None:
    assert make(hidden, window_size=3).initial()["memory"].shape == (2, 2 * hidden // heads)


@pytest.mark.parametrize(
    "kwargs,sentence",
    [
        ({"window_size": 1}, r"window_size is 1; it must be at least 2"),
        ({"window_size": 2.5}, r"window_size is 2\.5; it must be a whole number"),
        ({"num_heads": 0}, r"num_heads is 0; it must be at least 1"),
        ({"num_heads": 3}, r"num_heads is 3; it must divide hidden_size, 8"),
        ({"mlp_ratio": 0}, r"mlp_ratio is 0; it must be at least 1"),
        ({"gate": "lstm"}, r"gate is 'lstm'; use 'none' or 'gru'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^policy\.controller\.{sentence}$"):
        make(**kwargs)


def test_the_gate_is_the_papers() -> None:
    gate = GruGate(8, Generator().manual_seed(0)).double()
    x, y = (torch.randn(3, 8, dtype=torch.float64) for _ in range(2))
    w_r, w_z, w_g = gate.of_branch.weight.chunk(3)
    u_r, u_z = gate.of_stream.weight.chunk(2)
    y_relu = torch.relu(y)
    r = torch.sigmoid(y_relu @ w_r.t() + x @ u_r.t())
    z = torch.sigmoid(y_relu @ w_z.t() + x @ u_z.t() - 2)
    candidate = torch.tanh(y_relu @ w_g.t() + (r * x) @ gate.of_reset_stream.weight.t())
    torch.testing.assert_close(gate(x, y), (1 - z) * x + z * candidate, rtol=1e-12, atol=1e-12)
