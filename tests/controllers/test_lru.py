"""The linear recurrent unit: its eigenvalues at the start, and its matrices as the paper writes them."""

import math
from typing import Any

import pytest
import torch
from torch import Generator

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.lru import LruController


def lru(horizon: int = 100, hidden: int = 64, chrono: bool = True, **kwargs: Any) -> LruController:
    settings = ControllerSettings(kind="lru", hidden_size=hidden, chrono=chrono, **kwargs)
    built = build_controller(settings, 5, horizon, Generator().manual_seed(0))
    assert isinstance(built, LruController)
    return built


def test_chrono_time_constants_are_uniform_over_the_horizon() -> None:
    radius = lru(horizon=101, hidden=8, d_state=20_000).eigenvalues().abs()
    assert radius.max() <= 1 - 1 / 101 + 1e-6
    spans = radius / (1 - radius)
    torch.testing.assert_close(spans.quantile(torch.tensor([0.25, 0.5, 0.75])), torch.tensor([25.75, 50.5, 75.25]),
                               rtol=0, atol=1.5)  # fmt: skip


def test_without_chrono_the_squared_radius_is_uniform() -> None:
    squares = lru(chrono=False, hidden=8, d_state=20_000).eigenvalues().abs().square()
    torch.testing.assert_close(squares.quantile(torch.tensor([0.1, 0.5, 0.9])), torch.tensor([0.1, 0.5, 0.9]),
                               rtol=0, atol=0.02)  # fmt: skip


def test_phases_fill_the_range_that_was_asked_for() -> None:
    phase = lru(hidden=8, d_state=2000, max_phase=0.2).eigenvalues().angle()
    assert 0 < phase.min() < 0.01 and 0.19 < phase.max() <= 0.2 + 1e-6


@pytest.mark.parametrize("value", [-30.0, 30.0])
def test_no_parameter_makes_the_recurrence_grow(value: float) -> None:
    controller = lru()
    with torch.no_grad():
        controller.log_decay.fill_(value)
        controller.log_phase.fill_(value / 10)
    assert controller.eigenvalues().abs().max() <= 1


def test_white_noise_keeps_every_state_at_the_size_of_what_drives_it() -> None:
    controller = lru(horizon=20, hidden=16)
    u = torch.randn(4000, 2, 16, generator=Generator().manual_seed(1))
    no_reset = torch.zeros(4000, 2, dtype=torch.bool)
    with torch.no_grad():
        driven = torch.view_as_complex((u @ controller.weight_in.t()).unflatten(-1, (-1, 2)))
        states = torch.empty_like(driven)
        carry = controller.initial_carry(2)
        for t in range(4000):
            _, carry = controller.mixer_scan(u[t : t + 1], no_reset[t : t + 1], carry)
            states[t] = torch.view_as_complex(carry["h"])
    ratio = states[200:].abs().square().mean((0, 1)) / driven.abs().square().mean((0, 1))
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=0.35)


def test_the_cell_is_the_papers_equations_with_complex_matrices() -> None:
    controller = lru(hidden=6, d_state=4).double()
    b = torch.exp(controller.log_gamma).unsqueeze(1) * torch.complex(
        *controller.weight_in.unflatten(0, (-1, 2)).unbind(1)
    )
    c = torch.complex(controller.weight_out[:, 0::2], -controller.weight_out[:, 1::2])
    radius, phase = torch.exp(-torch.exp(controller.log_decay)), torch.exp(controller.log_phase)
    eigenvalues = radius * torch.exp(1j * phase)
    u, h = torch.randn(6, dtype=torch.float64), torch.randn(4, dtype=torch.complex128)
    after = eigenvalues * h + b @ u.to(b.dtype)
    expected = (c @ after).real + controller.skip * u
    y, carry = controller.mixer_cell(u.unsqueeze(0), {"h": torch.view_as_real(h).unsqueeze(0)})
    torch.testing.assert_close(y[0], expected)
    torch.testing.assert_close(torch.view_as_complex(carry["h"])[0], after)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"d_state": 0}, "policy.controller.d_state is 0; it must be at least 1"),
        ({"d_state": 2.5}, "policy.controller.d_state is 2.5; it must be a whole number"),
        ({"max_phase": 0}, r"policy.controller.max_phase is 0.0; it must be in \(0, 2 pi\]"),
        ({"max_phase": 2 * math.pi + 0.1}, r"max_phase is 6.38.*; it must be in \(0, 2 pi\]"),
        ({"max_phase": "small"}, "max_phase is 'small'; it must be a number"),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_sentence(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        lru(**kwargs)
