"""The anchor pass against a loop over lanes and steps: values, those of final observations, and renewed carries."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mneme.controllers import Carry, ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner.anchor import anchor_pass
from mneme.learner.batch import SequenceBatch
from mneme.learner.returns import vtrace
from mneme.rollout_workers import Collector, Fragment, SpaceSettings, policy_spec
from tests.environments import Everything

CPU = torch.device("cpu")
EVERYTHING = SpaceSettings(previous_action=True, previous_reward=True)


def batch_of(*fragments: Fragment) -> SequenceBatch:
    return SequenceBatch.from_fragments([Fragment.from_arrow(fragment.to_arrow()) for fragment in fragments], CPU)


def moved(policy: Policy, by: float = 0.1) -> Policy:
    """Other weights, as an update would leave them."""
    policy = deepcopy(policy)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return policy


def everything(mode: AutoresetMode, kind: str, stride: int, length: int = 12) -> Collector:
    """Masks, pictures, the last action and reward; every second episode of 5 steps is cut short."""
    env = SyncVectorEnv([lambda: Everything(masked=True)] * 2, autoreset_mode=mode)
    controller = ControllerSettings(kind=kind, hidden_size=8, **({"window_size": 4} if kind == "transformer" else {}))
    spec = policy_spec(env, EVERYTHING)
    policy = build_policy(spec, PolicySettings(controller=controller, encoder=(8,)), 5, seed=0)
    return Collector(env, policy, length, stride, seed=0, spaces=EVERYTHING)


def counting(kind: str, length: int = 11, stride: int = 11, warm_up: int = 0, shortest: int = 40) -> Collector:
    """Lane b's episodes have shortest + b % 5 steps."""
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0", kwargs={"shortest": shortest}), 3)
    controller = ControllerSettings(kind=kind, hidden_size=8, initial_carry="zero")
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), length, seed=0)
    return Collector(env, policy, length, stride, seed=0, warm_up=warm_up)


def one(array: Any) -> torch.Tensor:
    """One lane's one step, [1, 1, ...]."""
    return torch.from_numpy(np.array(array))[None, None]


def stepped(policy: Policy, parts: dict[str, Any], reset: bool, carry: Carry) -> tuple[float, Carry]:
    out = policy.scan({name: one(part) for name, part in parts.items()}, torch.tensor([[reset]]), carry)
    return float(out.value_TB), out.carry


@torch.no_grad()
def looped(policy: Policy, f: Fragment) -> tuple[np.ndarray, np.ndarray]:
    """Values [B, T + 1] and those of final observations [B, T], one lane and one step at a time."""
    values, finals, row = np.zeros((f.num_envs, f.length + 1)), np.zeros((f.num_envs, f.length)), 0
    for b in range(f.num_envs):
        carry = {name: torch.from_numpy(c[b : b + 1, 0].copy()) for name, c in f.carries.items()}
        for t in range(f.length + 1):
            observed = {name: part[b, t] for name, part in f.observations.items()}
            values[b, t], carry = stepped(policy, observed, bool(f.resets[b, t]), carry)
            if t < f.length and f.truncated[b, t] and not f.terminated[b, t]:
                final = {name: part[row] for name, part in f.final_observations.items()}
                finals[b, t], _ = stepped(policy, final, False, carry)
                row += 1
    return values, finals


def test_a_truncated_step_bootstraps_from_the_weights_of_today() -> None:
    """Collected with V = 0, learned with V = 10: a reward of 1 is worth 1 + 0.99 * 10, not 1."""

    class One(gym.Env[Any, Any]):
        observation_space, action_space = gym.spaces.Box(0, 1, (1,), np.float32), gym.spaces.Discrete(2)

        def reset(self, **options: Any) -> Any:
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.ones(1, np.float32), 1.0, False, True, {}

    env = SyncVectorEnv([One], autoreset_mode=AutoresetMode.SAME_STEP)
    policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=8)), 1, seed=0)
    torch.nn.init.zeros_(policy.value_head.weight)
    batch = batch_of(Collector(env, policy, 4, 4, seed=0).collect()[0])
    torch.nn.init.constant_(policy.value_head.bias, 10.0)
    anchor = anchor_pass(policy, batch)
    ends = (anchor.final_values, batch.terminated, batch.truncated, batch.valid)
    ratios = anchor.log_probs - batch.log_probs
    returns = vtrace(ratios, batch.rewards, anchor.values, *ends, gamma=0.99, lam=0.95, rho_clip=1.0, c_clip=1.0)
    torch.testing.assert_close(returns.targets, torch.full((1, 4), 10.9))


@pytest.mark.parametrize(
    ("kind", "mode", "stride"),
    [
        ("gru", AutoresetMode.SAME_STEP, 1),
        ("gru", AutoresetMode.NEXT_STEP, 4),
        ("transformer", AutoresetMode.SAME_STEP, 5),
        ("transformer", AutoresetMode.NEXT_STEP, 12),
    ],
)
def test_values_and_those_of_final_observations_are_those_of_a_loop(
    kind: str, mode: AutoresetMode, stride: int
) -> None:
    collector = everything(mode, kind, stride)
    collector.collect()
    fragment, _ = collector.collect()
    assert fragment.cut_short.sum() >= 2
    policy = moved(collector.policy)
    anchor = anchor_pass(policy, batch_of(fragment))
    values, finals = looped(policy, fragment)
    np.testing.assert_allclose(anchor.values.numpy(), values, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(anchor.final_values.numpy(), finals, atol=1e-4, rtol=1e-4)
    assert np.abs(finals - fragment.final_values)[fragment.cut_short].min() > 1e-3


@pytest.mark.parametrize("kind", ["lstm", "mamba2", "pseudo_mamba"])
def test_equal_weights_give_what_was_stored(counting_collector: Callable[..., Collector], kind: str) -> None:
    collector = counting_collector(kind=kind)
    first, second = collector.collect()[0], collector.collect()[0]
    batch = batch_of(first, second)
    some = torch.tensor([7, 2, 2, 11])
    for part in (batch, batch.rows(some), batch.rows(some).rows(torch.tensor([3, 0]))):
        anchor = anchor_pass(collector.policy, part)
        torch.testing.assert_close(anchor.final_values, part.final_values, atol=1e-5, rtol=0)
        torch.testing.assert_close(anchor.values, part.values, atol=1e-5, rtol=0)
        assert part.final_values[part.cut_short].all()


@pytest.mark.parametrize("kind", ["gru", "mamba2", "transformer"])
@pytest.mark.parametrize("warm_up", [22, 50])
def test_a_warm_up_from_the_episodes_start_renews_the_first_carry_exactly(kind: str, warm_up: int) -> None:
    collector = counting(kind, warm_up=warm_up)
    fragments = [collector.collect()[0] for _ in range(3)]
    policy = moved(collector.policy)
    carry = policy.initial_carry(3)
    for fragment in fragments:
        anchor = anchor_pass(policy, batch_of(fragment))
        renewed = {name: c[:, 0] for name, c in anchor.carries.items()}
        reset = fragment.resets[:, 0]
        for name, c in carry.items():
            torch.testing.assert_close(renewed[name][~reset], c[~reset], atol=1e-5, rtol=1e-5)
        for t in range(11):
            observed = {name: torch.from_numpy(part[:, t])[None] for name, part in fragment.observations.items()}
            with torch.no_grad():
                carry = policy.scan(observed, torch.from_numpy(fragment.resets[:, t])[None], carry).carry
    stored = {name: torch.from_numpy(c[:, 0]) for name, c in fragments[2].carries.items()}
    assert any((stored[name] - renewed[name]).abs().max() > 1e-3 for name in stored)


def test_a_warm_up_from_before_the_lane_began_changes_nothing() -> None:
    with_past, without = (counting("gru", warm_up=p).collect()[0] for p in (30, 0))
    policy = moved(counting("gru").policy)
    a, b = anchor_pass(policy, batch_of(with_past)), anchor_pass(policy, batch_of(without))
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.log_probs, b.log_probs)
