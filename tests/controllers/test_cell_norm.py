"""GRU and LSTM with LayerNorm inside the cell."""

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.contract import CHECKS, Check
from mneme.controllers.layer_norm import layer_norm

CASES = [(kind, start) for kind in ("gru", "lstm") for start in ("zero", "learned")]


def make(kind: str, layer_norm: bool, start: str = "zero", inputs: int = 5) -> Controller:
    settings = ControllerSettings(
        kind=kind,
        hidden_size=6,
        initial_carry=start,  # type: ignore[arg-type]
        layer_norm=layer_norm,
    )
    return build_controller(settings, inputs, 10, Generator().manual_seed(0))


def normed(a: Tensor, epsilon: float) -> Tensor:
    return (a - a.mean(-1, keepdim=True)) / (a.var(-1, unbiased=False, keepdim=True) + epsilon).sqrt()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name.replace(" ", "-"))
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_the_normed_cells_keep_the_contract(case: tuple[str, str], check: Check) -> None:
    kind, start = case
    settings = ControllerSettings(kind=kind, hidden_size=6, initial_carry=start, layer_norm=True)  # type: ignore[arg-type]
    finding = check.run(lambda inputs, generator: build_controller(settings, inputs, 10, generator))
    assert finding.passed, finding


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_one_step_is_the_papers(kind: str) -> None:
    controller = make(kind, layer_norm=True).double()
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    weights = dict(controller.named_parameters())
    x, h, c = (torch.randn(3, size, generator=generator, dtype=torch.float64) for size in (5, 6, 6))
    of_x = layer_norm(x @ weights["weight_ih"].t()) * weights["gate_gains"][0] + weights["bias_ih"]
    of_h = normed(h @ weights["weight_hh"].t(), 0.25) * weights["gate_gains"][1] + weights["bias_hh"]
    if kind == "gru":
        r, z = torch.sigmoid(of_x + of_h)[:, :12].chunk(2, 1)
        n = torch.tanh(of_x[:, 12:] + r * of_h[:, 12:])
        expected = {"h": (1 - z) * n + z * h}
    else:
        i, f, g, o = (of_x + of_h).chunk(4, 1)
        c_after = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        gain, bias = weights["memory_norm"]
        expected = {"h": torch.sigmoid(o) * torch.tanh(normed(c_after, 1.0) * gain + bias), "c": c_after}
    _, after = controller.step(x, torch.zeros(3, dtype=torch.bool), {"h": h, "c": c} if kind == "lstm" else {"h": h})
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_norm_adds_parameters_and_leaves_the_others_as_they_start(kind: str) -> None:
    plain, with_norm = make(kind, layer_norm=False).state_dict(), make(kind, layer_norm=True).state_dict()
    assert set(with_norm) - set(plain) == {"gate_gains"} | ({"memory_norm"} if kind == "lstm" else set())
    assert all(torch.equal(with_norm[name], value) for name, value in plain.items())


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("chrono", [True, False])
def test_no_gradient_grows_around_the_loop_of_a_blank_start(kind: str, chrono: bool) -> None:
    settings = ControllerSettings(kind=kind, hidden_size=16, chrono=chrono, layer_norm=True)
    controller = build_controller(settings, 4, 100, Generator().manual_seed(0)).double()
    carry = {name: value[0] for name, value in controller.initial_carry(1).items()}

    def step(state: Tensor) -> Tensor:
        parts = dict(zip(carry, state.split(16), strict=True))
        _, after = controller.cell(
            torch.zeros(1, 4, dtype=torch.float64), {n: v.unsqueeze(0) for n, v in parts.items()}
        )
        return torch.cat([after[name][0] for name in carry])

    jacobian = torch.autograd.functional.jacobian(step, torch.cat(list(carry.values())))
    assert torch.linalg.eigvals(jacobian).abs().max() <= 1
