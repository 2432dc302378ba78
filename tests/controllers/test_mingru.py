"""The minimal GRU: how long it keeps, what it may become, and its kernel behind the same contract."""

from typing import Any

import pytest
import torch
from torch import Generator

from mneme.controllers import ControllerSettings, build_controller
from mneme.controllers.mingru import MinGruController


def mingru(horizon: int = 100, hidden: int = 64, **settings: Any) -> MinGruController:
    choice = ControllerSettings(kind="mingru", hidden_size=hidden, **settings)
    built = build_controller(choice, hidden, horizon, Generator().manual_seed(0))
    assert isinstance(built, MinGruController)
    return built


@pytest.mark.parametrize("chrono", [True, False])
def test_blank_observations_decay_the_state_by_the_chrono_bias_and_write_nothing(chrono: bool) -> None:
    controller = mingru(chrono=chrono)
    start = torch.randn(3, 64)
    blank, no_reset = torch.zeros(10, 3, 64), torch.zeros(10, 3, dtype=torch.bool)
    _, carry = controller.scan(blank, no_reset, {"h": start})
    keep = (carry["h"] / start).pow(0.1)
    spans = keep / (1 - keep)
    assert (spans.max() > 90 and spans.min() < 10) if chrono else torch.allclose(spans, torch.ones(64), atol=1e-3)


def test_states_stay_among_the_candidates_seen() -> None:
    controller = mingru(horizon=5)
    x, no_reset = 1e4 * torch.randn(200, 2, 64), torch.zeros(200, 2, dtype=torch.bool)
    candidates = controller.gates(controller.norm(x))[..., 64:]
    _, carry = controller.scan(x, no_reset, controller.initial_carry(2))
    assert (carry["h"] <= candidates.amax(0).clamp_min(0) + 1e-5).all()
    assert (carry["h"] >= candidates.amin(0).clamp_max(0) - 1e-5).all()


def test_the_triton_backend_gives_the_same_outputs_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is for Linux")
    if torch.cuda.is_available():
        pytest.skip("the interpreter stands in for a GPU where there is none")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x, reset, cut = torch.randn(5, 2, 3, dtype=torch.double), torch.rand(5, 2) < 0.3, torch.rand(5, 2) < 0.3
    results = []
    for backend in ("torch", "triton"):
        controller = mingru(hidden=3, backend=backend).double()
        y, carry = controller.scan(x, reset, controller.initial_carry(2), cut)
        grads = torch.autograd.grad(y.square().sum() + carry["h"].sum(), list(controller.parameters()))
        results.append([y, carry["h"], *grads])
    assert controller.backend_on(x.device) == "triton"
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)
