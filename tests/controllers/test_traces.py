"""Traces against their definition: the Jacobian of the carry in the parameters, lane by lane."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.contract import CHECKS
from mneme.controllers.contract.trial import draw, subject
from mneme.controllers.traces import no_traces, traced, traces_after

KINDS: dict[str, dict[str, Any]] = {"nbrc": {"cellular": True}, "mingru": {}, "lru": {}}
kinds = pytest.mark.parametrize("kind", list(KINDS))
T, B, RESETS = 23, 4, 0.1


def built(kind: str, **settings: Any) -> Controller:
    own = ControllerSettings(kind=kind, hidden_size=6, **KINDS[kind], **settings)
    return subject(lambda size, generator: build_controller(own, size, 10, generator))


def traces_of(controller: Controller, spans: tuple[int, ...]) -> dict[str, Tensor]:
    """Of a carry that so many steps made, one span after the other."""
    x, reset, carry = draw(controller, T, resets=RESETS)
    traces, carry = no_traces(controller.elementwise(), B), {name: c.detach() for name, c in carry.items()}
    with torch.no_grad():
        for x_part, reset_part in zip(x.split(spans), reset.split(spans), strict=True):
            runs = controller.elementwise_runs(x_part, reset_part, carry)
            traces = traces_after(controller.elementwise(), runs, reset_part, traces)
            _, carry = controller.scan(x_part, reset_part, carry)
    return traces


@kinds
@pytest.mark.parametrize("start", ["zero", "learned"])
@pytest.mark.parametrize("spans", [(23,), (1, 15, 7)], ids=str)
def test_traces_are_the_jacobian(kind: str, start: str, spans: tuple[int, ...]) -> None:
    controller = built(kind, initial_carry=start)
    x, reset, carry = draw(controller, T, resets=RESETS)
    found = traced(
        controller.elementwise(), {name: c.detach() for name, c in carry.items()}, traces_of(controller, spans)
    )
    _, after = controller.reference_scan(x, reset, {name: c.detach() for name, c in carry.items()})
    parameters = list(controller.parameters())
    upstream = {id(p) for name, p in controller.named_parameters() if name.startswith(("project.", "norm."))}
    compared = 0
    for number, slow in zip(found["h"].flatten(), after["h"].flatten(), strict=True):
        actual, expected = (
            torch.autograd.grad(h, parameters, retain_graph=True, allow_unused=True) for h in (number, slow)
        )
        for p, a, e in zip(parameters, actual, expected, strict=True):
            if id(p) in upstream:  # they reach the state by the inputs, which traces take as they are
                assert a is None
            elif e is None:
                assert a is None or not a.any()
            else:
                assert a is not None
                torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)
                compared += 1
    assert compared >= 2 * found["h"].numel()


@kinds
def test_nothing_crosses_a_reset(kind: str) -> None:
    controller = built(kind)
    x, reset, carry = draw(controller, 7, resets=0.0)
    reset[3, :2] = True
    carry = {name: c.detach() for name, c in carry.items()}
    none = no_traces(controller.elementwise(), B)
    some = {name: torch.ones_like(s) for name, s in none.items()}
    with torch.no_grad():
        runs = controller.elementwise_runs(x, reset, carry)
        fresh, old = (traces_after(controller.elementwise(), runs, reset, before) for before in (none, some))
    for name in fresh:
        assert torch.equal(fresh[name][:2], old[name][:2])
        assert not torch.equal(fresh[name][2:], old[name][2:])


def test_units_that_set_each_others_gates_have_none() -> None:
    for settings in (ControllerSettings(kind="gru"), ControllerSettings(kind="nbrc")):
        controller = build_controller(settings, 5, 10, Generator().manual_seed(0))
        assert controller.elementwise() == {}


def test_of_two_layers_the_upper_one_is_exact_and_the_lower_one_by_its_own_state() -> None:
    controller = built("mingru", num_layers=2)
    assert set(traces_of(controller, (T,))) == {f"h_{i}.{name}" for i in (0, 1) for name in ("gates", "bias")}
    assert not controller.elementwise()["h_0"].initial[0].requires_grad


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("start", ["zero", "learned"])
def test_bistable_units_by_themselves_keep_the_contract_of_traces(layers: int, start: str) -> None:
    (check,) = (check for check in CHECKS if check.name == "traces are the past")
    settings = ControllerSettings(kind="nbrc", hidden_size=6, num_layers=layers, initial_carry=start, cellular=True)  # type: ignore[arg-type]
    finding = check.run(lambda size, generator: build_controller(settings, size, 10, generator))
    assert finding.passed, finding
    assert finding.error > 0
