"""Acting is the scan with T = 1; building is a function of settings and seed."""

from typing import Any

import pytest
import torch
from torch import Generator, nn

from controllers import (
    CONTROLLERS,
    ControllerSettings,
    Policy,
    PolicySettings,
    PolicySpec,
    Weights,
    build_policy,
)

SPEC = PolicySpec(observation_size=7, actions=4)
T, B = 23, 6


def make(kind: str = "gru", seed: int = 0, encoder: tuple[int, ...] = (), **controller: Any) -> Policy:
    settings = PolicySettings(encoder=encoder, controller=ControllerSettings(kind=kind, hidden_size=16, **controller))
    return build_policy(SPEC, settings, horizon=20, seed=seed)


@pytest.mark.parametrize("kind", CONTROLLERS)
@pytest.mark.parametrize("encoder", [(), (12, 9)])
@pytest.mark.parametrize("start", ["zero", "learned"])
def test_acting_is_scanning(kind: str, encoder: tuple[int, ...], start: str) -> None:
    policy = make(kind, encoder=encoder, initial_carry=start)
    generator = Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    obs, uniform = torch.randn(T, B, 7, generator=generator), torch.rand(T, B, generator=generator)
    reset = torch.rand(T, B, generator=generator) < 0.2
    carry = policy.initial_carry(B)
    whole = policy.scan(obs, reset, carry)
    for t in range(T):
        torch.testing.assert_close(policy.value(obs[t], reset[t], carry), whole.value_TB[t], rtol=1e-6, atol=1e-6)
        act = policy.act(obs[t], reset[t], carry, uniform[t])
        log_prob = policy.action_head.log_prob(whole.logits_TBA[t], act.action_B)
        torch.testing.assert_close(act.log_prob_B, log_prob, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(act.value_B, whole.value_TB[t], rtol=1e-6, atol=1e-6)
        assert torch.equal(act.action_B, policy.action_head.sample(whole.logits_TBA[t], uniform[t]))
        assert not any(value.requires_grad for value in (act.log_prob_B, act.value_B, *act.carry.values()))
        carry = act.carry
    torch.testing.assert_close(carry, whole.carry, rtol=1e-6, atol=1e-6)


def test_greedy_takes_the_mode_and_ignores_the_noise() -> None:
    policy = make()
    nn.init.normal_(policy.policy_head.weight, generator=Generator().manual_seed(0))
    obs, reset = torch.randn(B, 7, generator=Generator().manual_seed(2)), torch.ones(B, dtype=torch.bool)
    logits = policy.scan(obs[None], reset[None], policy.initial_carry(B)).logits_TBA[0]
    for noise in (0.0, 0.999):
        act = policy.act(obs, reset, policy.initial_carry(B), torch.full((B,), noise), greedy=True)
        assert torch.equal(act.action_B, logits.argmax(-1))


def test_a_fresh_policy_is_nearly_uniform() -> None:
    obs, reset = torch.randn(T, B, 7), torch.zeros(T, B, dtype=torch.bool)
    probabilities = make().scan(obs, reset, make().initial_carry(B)).logits_TBA.softmax(-1)
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 0.25), rtol=0, atol=0.03)


def test_the_norm_follows_the_setting() -> None:
    assert isinstance(make().norm, nn.LayerNorm)
    assert isinstance(make(output_norm=False).norm, nn.Identity)


def test_every_parameter_receives_gradient() -> None:
    policy = make(encoder=(9,), initial_carry="learned")
    with torch.no_grad():
        policy.policy_head.weight.mul_(100)
    reset = torch.zeros(T, B, dtype=torch.bool)
    output = policy.scan(torch.randn(T, B, 7), reset, policy.initial_carry(B))
    (output.logits_TBA.log_softmax(-1)[..., 0].sum() + output.value_TB.sum()).backward()
    assert all(p.grad is not None and torch.count_nonzero(p.grad) for p in policy.parameters())


def test_the_seed_decides_the_bits() -> None:
    digests = [Weights.from_module(make(seed=seed), 0).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_bad_sizes_and_names_get_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"controller.kind is 'grue'; choose one of .*nearest: 'gru'"):
        make("grue")
    with pytest.raises(ValueError, match=r"controller.hidden_size is 0; it must be at least 1"):
        ControllerSettings(hidden_size=0)
    with pytest.raises(ValueError, match=r"controller.initial_carry is 'random'"):
        ControllerSettings(initial_carry="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"controller.expected_horizon is 0"):
        ControllerSettings(expected_horizon=0)
    with pytest.raises(ValueError, match=r"encoder\[1\] is 0"):
        PolicySettings(encoder=(4, 0))
    with pytest.raises(ValueError, match="observation size is 0"):
        PolicySpec(observation_size=0, actions=2)
    with pytest.raises(ValueError, match="horizon is 0"):
        build_policy(SPEC, PolicySettings(), horizon=0, seed=0)
