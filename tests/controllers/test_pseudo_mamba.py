"""Mamba-2 with slots: every rule and query keeps the contract; gate, auxiliary loss and settings do what they say."""

from typing import Any

import pytest
import torch
from torch import Generator

from mneme.controllers import Controller, ControllerSettings, build_controller
from mneme.controllers.contract import CHECKS
from mneme.controllers.pseudo_mamba import PseudoMambaController

SMALL = {"num_slots": 3, "slot_size": 4, "d_state": 3, "chunk_size": 8}
OTHERS = [("classic", "input"), ("recent", "state"), ("classic", "state")]  # the default is in the contract's own test


def build(input_size: int = 5, horizon: int = 10, **kwargs: Any) -> PseudoMambaController:
    settings = ControllerSettings(kind="pseudo_mamba", hidden_size=6, **SMALL | kwargs)
    controller = build_controller(settings, input_size, horizon, Generator().manual_seed(0))
    assert isinstance(controller, PseudoMambaController)
    return controller


@pytest.mark.parametrize("rule,query", OTHERS)
def test_every_rule_and_query_keeps_the_contract(rule: str, query: str) -> None:
    settings = ControllerSettings(kind="pseudo_mamba", hidden_size=6, **SMALL, rule=rule, query=query)

    def fresh(input_size: int, generator: Generator) -> Controller:
        return build_controller(settings, input_size, 10, generator)

    findings = [check.run(fresh) for check in CHECKS]
    assert [finding for finding in findings if not finding.passed] == []


@pytest.mark.parametrize("query", ["input", "state"])
def test_the_gate_is_said_by_the_output_and_starts_at_one_write_a_horizon(query: str) -> None:
    controller = build(horizon=50, query=query)
    x, reset = torch.randn(40, 7, 5), torch.zeros(40, 7, dtype=torch.bool)
    y, _ = controller.scan(x, reset, controller.initial_carry(7))
    gate = controller.signals(y)["gate"]
    assert gate.shape == (40, 7) and 0.5 / 50 < gate.mean() < 2 / 50
    torch.testing.assert_close(build(rule="classic", query=query).signals(0 * y)["gate"], torch.full((40, 7), 0.5))
    carry, total = controller.initial_carry(7), torch.zeros(7)
    for t in range(3):  # a write of gate g leaves that occupancy, and the first writes share a slot
        total = total + gate[t] * (1 - total)
        _, carry = controller.step(x[t], reset[t], carry)
    torch.testing.assert_close(carry["usage"][:, 0], total)


def test_the_auxiliary_loss_is_that_of_each_sequences_mean_gate() -> None:
    controller = build(gate_coef=2.0)
    expected = torch.tensor([2 * (0.2 - 0.1) ** 2, 2 * (0.4 - 0.1) ** 2])
    torch.testing.assert_close(controller.auxiliary_loss({"gate": torch.tensor([0.2, 0.4])}), expected)


def test_the_published_reading_reaches_the_state_and_the_parallel_one_does_not() -> None:
    for query, reaches in (("state", True), ("input", False)):
        controller = build(query=query)
        carry = controller.initial_carry(2)
        carry["slots"] = torch.randn_like(carry["slots"])
        carry["usage"] = torch.ones_like(carry["usage"])
        empty = controller.initial_carry(2)
        x, reset = torch.randn(1, 2, 5), torch.zeros(1, 2, dtype=torch.bool)
        h, plain = (controller.scan(x, reset, c)[0][..., :6] for c in (carry, empty))
        assert torch.equal(h, plain) != reaches


def test_a_backend_for_all_steps_at_once_is_refused_where_they_follow_one_another() -> None:
    with pytest.raises(ValueError, match="backend is 'numba'; query=state goes step by step, so choose auto"):
        ControllerSettings(kind="pseudo_mamba", backend="numba", query="state")


@pytest.mark.parametrize(
    "kwargs,sentence",
    [
        ({"num_slots": 0}, r"policy.controller.num_slots is 0; it must be at least 1"),
        ({"slot_size": 1.5}, r"policy.controller.slot_size is 1.5; it must be a whole number"),
        ({"rule": "oldest"}, r"policy.controller.rule is 'oldest'; use 'recent' or 'classic'"),
        ({"query": "output"}, r"policy.controller.query is 'output'; use 'input' or 'state'"),
        ({"decay": 1.0}, r"policy.controller.decay is 1.0; it must be in \[0, 1\)"),
        ({"gate_coef": -1.0}, r"policy.controller.gate_coef is -1.0; it must be at least 0"),
    ],
)
def test_what_is_out_of_range_is_refused(kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**kwargs)
