"""What acts for many steps in a row does as `Policy.act` does."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from mneme.controllers import Actor, Categorical, ControllerSettings, Policy, PolicySettings, PolicySpec, Vector
from mneme.controllers import build_policy as build
from mneme.controllers.acting import head_inputs, head_parameters, heads_compile
from mneme.controllers.scans.choice import Choice

T, B, H = 30, 13, 24
COMPILED = ("gru", "lstm", "nbrc", "mingru", "lru", "mamba2")


def policy_of(
    kind: str = "gru", actions: int = 4, heads: tuple[int, ...] = (), encoder: tuple[int, ...] = (), **settings: Any
) -> Policy:
    """Its parameters are all off what they begin with, so that every one of them shows."""
    controller = ControllerSettings(kind=kind, hidden_size=H, **settings)
    own = PolicySettings(controller=controller, heads=heads, encoder=encoder)
    policy = build(PolicySpec({"x": Vector(3)}, Categorical(actions)), own, 5, seed=0)
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return policy


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("norm,heads", [(True, ()), (False, ()), (True, (5,)), (False, (7, 3))])
@pytest.mark.parametrize("kind,start", [("gru", "zero"), ("mlp", "zero"), *((kind, "learned") for kind in COMPILED)])
def test_it_acts_as_the_policy_does(kind: str, start: str, norm: bool, heads: tuple[int, ...], greedy: bool) -> None:
    policy = policy_of(kind, heads=heads, encoder=heads, output_norm=norm, initial_carry=start)
    assert heads_compile(policy, policy.value_head.weight)
    x, uniform = drawn(T, B, 3, dtype=torch.float32), torch.rand(T, B, 1, generator=Generator().manual_seed(3))
    reset = torch.rand(T, B, generator=Generator().manual_seed(4)) < 0.2
    actor, own, carry = Actor(policy, greedy), policy.initial_carry(B), policy.initial_carry(B)
    for t in range(T):
        expected = policy.act({"x": x[t]}, reset[t], carry, uniform[t], greedy)
        given = actor.act({"x": x[t]}, reset[t], own, uniform[t])
        torch.testing.assert_close(given[:3], expected[:3], rtol=1e-5, atol=4e-6)
        own, carry = given.carry, expected.carry
        for name, part in carry.items():  # a number in it is a sum of others, which may be larger than it
            largest = float(part.abs().max())
            torch.testing.assert_close(own[name], part, rtol=1e-5, atol=1e-6 * max(4.0, largest))
        for name, part in own.items():  # in its own memory; what rounding differs by would grow from step to step
            part.copy_(carry[name])


@pytest.mark.parametrize("kind", ["gru", "lstm", "nbrc", "mingru", "lru", "mamba", "transformer"])
def test_the_number_of_lanes_may_change(kind: str) -> None:
    policy = policy_of(kind)
    actor = Actor(policy)
    for lanes in (3, 7, 7, 1):
        observations, reset = {"x": drawn(lanes, 3, dtype=torch.float32)}, torch.zeros(lanes, dtype=torch.bool)
        uniform = torch.full((lanes, 1), 0.4)
        given = actor.act(observations, reset, policy.initial_carry(lanes), uniform)
        expected = policy.act(observations, reset, policy.initial_carry(lanes), uniform)
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "mingru", "lru", "mamba", "mamba2", "pseudo_mamba", "transformer"])
def test_a_lane_acts_the_same_whoever_is_beside_it(kind: str) -> None:
    policy, x, uniform = policy_of(kind), drawn(B, 3, dtype=torch.float32), torch.rand(B, 1)
    together = Actor(policy).act({"x": x}, torch.ones(B, dtype=torch.bool), policy.initial_carry(B), uniform)
    for b in range(B):
        own = slice(b, b + 1)
        alone = Actor(policy).act({"x": x[own]}, torch.ones(1, dtype=torch.bool), policy.initial_carry(1), uniform[own])
        assert all(torch.equal(one[0], together.carry[name][b]) for name, one in alone.carry.items())
        assert all(torch.equal(one[0], all_of[b]) for one, all_of in zip(alone[:3], together[:3], strict=True))


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("norm,heads", [(True, ()), (False, ()), (True, (5,)), (False, (7, 3))])
@pytest.mark.parametrize("actions", [1, 2, 9])
def test_the_compiled_choice_is_the_plain_one(actions: int, norm: bool, heads: tuple[int, ...], greedy: bool) -> None:
    policy = policy_of(actions=actions, heads=heads, output_norm=norm).double()
    y = drawn(200, H)
    y[:40] *= 1e-3  # next to no variance, which the norm damps
    y[40] = 0
    uniform = torch.rand(200, 1, generator=Generator().manual_seed(3), dtype=torch.float64)
    given = Choice(head_parameters(policy), greedy)(head_inputs(policy, y).detach(), uniform)
    torch.testing.assert_close(given, policy.choice(y, {}, uniform, greedy), rtol=1e-12, atol=1e-12)


def test_what_is_impossible_is_never_chosen() -> None:
    policy, y = policy_of(actions=5), drawn(400, H, dtype=torch.float32)
    with torch.no_grad():
        policy.policy_head.bias[[0, 2, 4]] = -torch.inf
    uniform = torch.linspace(0, 1 - 2.0**-24, 400).unsqueeze(1)
    actions, log_probs, _ = Choice(head_parameters(policy), greedy=False)(y, uniform)
    assert set(actions.tolist()) == {1, 3} and log_probs.isfinite().all()
    ones = Choice(head_parameters(policy), greedy=False)(y, torch.ones(400, 1))[0]
    assert set(ones.tolist()) == {3}


@pytest.mark.parametrize("kind", ["gru", "lstm", "mingru"])
@pytest.mark.parametrize("lanes", [(3, 4, 4), (4, 3, 4), (4, 4, 3)])
def test_arguments_of_different_numbers_of_lanes_are_refused(kind: str, lanes: tuple[int, int, int]) -> None:
    policy, (resets, carries, noises) = policy_of(kind), lanes
    reset, carry = torch.zeros(resets, dtype=torch.bool), policy.initial_carry(carries)
    with pytest.raises(ValueError, match=r"are of \[3, 4\] lanes"):
        Actor(policy).act({"x": torch.zeros(resets, 3)}, reset, carry, torch.zeros(noises, 1))
