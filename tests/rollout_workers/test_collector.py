"""The collector, through the counting environment: what lane, what step, what carry, in every fragment."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.rollout_workers import Collector, policy_spec

LENGTHS = [3, 4, 5, 6, 7, 3]  # episode lengths of the counting environment's first lanes


def test_every_step_is_where_it_belongs(counting_collector: Callable[..., Collector]) -> None:
    collector = counting_collector(length=23)
    for round_ in range(3):
        fragment, _ = collector.collect(round_)
        fragment.validate()
        for lane, period in enumerate(LENGTHS):
            for t in range(24):
                at = round_ * 23 + t
                step, number, episode = fragment.observations["observation"][lane, t]
                assert (step, number, episode) == (at % period, lane, at // period)
                assert fragment.resets[lane, t] == (at % period == 0)
                if t < 23:
                    ends = at % period == period - 1
                    assert fragment.rewards[lane, t] == at % period
                    assert fragment.terminated[lane, t] == (ends and episode % 2 == 0)
                    assert fragment.truncated[lane, t] == (ends and episode % 2 == 1)
        assert (fragment.first_step == round_ * 23).all()
        assert (fragment.weights_version == round_).all()
        assert fragment.lane.tolist() == list(range(6))


@pytest.mark.parametrize("kind", ["gru", "mamba_gru", "pseudo_mamba"])  # two of which overwrite a carry given away
def test_consecutive_fragments_join(counting_collector: Callable[..., Collector], kind: str) -> None:
    collector = counting_collector(kind=kind)
    first, _ = collector.collect()
    second, _ = collector.collect()
    for name, part in first.observations.items():
        np.testing.assert_array_equal(part[:, -1], second.observations[name][:, 0])
    np.testing.assert_array_equal(first.resets[:, -1], second.resets[:, 0])
    np.testing.assert_allclose(first.values[:, -1], second.values[:, 0], atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "gru", "lstm", "mamba_gru", "pseudo_mamba"])
@pytest.mark.parametrize("stride", [1, 4, 23])
def test_replaying_stored_observations_reproduces_everything(
    counting_collector: Callable[..., Collector], kind: str, stride: int
) -> None:
    collector = counting_collector(kind=kind, initial_carry="learned")
    collector.carry_stride = stride
    collector.collect()
    fragment, _ = collector.collect()
    policy = collector.policy
    carry = {name: torch.from_numpy(c[:, 0].copy()) for name, c in fragment.carries.items()}
    for t in range(24):
        if t < 23 and t % stride == 0:
            for name, stored in fragment.carries.items():
                np.testing.assert_allclose(carry[name].detach().numpy(), stored[:, t // stride], atol=1e-5)
        observation = {name: torch.from_numpy(part[:, t].copy())[None] for name, part in fragment.observations.items()}
        with torch.no_grad():
            out = policy.scan(observation, torch.from_numpy(fragment.resets[:, t].copy())[None], carry)
        carry = out.carry
        np.testing.assert_allclose(out.value_TB[0].numpy(), fragment.values[:, t], atol=1e-5)
        if t < 23:
            action = torch.from_numpy(fragment.actions[:, t].copy())
            log_prob = policy.action_distribution.log_prob(out.parameters_TBA[0], action)
            np.testing.assert_allclose(log_prob.numpy(), fragment.log_probs[:, t], atol=1e-5)


def test_truncations_carry_the_value_of_the_true_final_observation(
    counting_collector: Callable[..., Collector],
) -> None:
    collector = counting_collector(lanes=1, length=9)  # lane 0: episodes of 3 steps; episode 1 is truncated at t = 5
    fragment, _ = collector.collect()
    assert np.flatnonzero(fragment.truncated[0]).tolist() == [5]
    carry = collector.policy.initial_carry(1)
    observations = torch.tensor([[[0.0, 0.0, 1.0]], [[1.0, 0.0, 1.0]], [[2.0, 0.0, 1.0]], [[3.0, 0.0, 1.0]]])
    with torch.no_grad():
        out = collector.policy.scan({"observation": observations}, torch.zeros(4, 1, dtype=torch.bool), carry)
    value = out.value_TB[-1, 0]
    assert float(value) == pytest.approx(float(fragment.final_values[0, 5]), abs=1e-6)
    assert np.count_nonzero(fragment.final_values) == 1


def test_fragments_share_no_memory(counting_collector: Callable[..., Collector]) -> None:
    collector = counting_collector()
    first, _ = collector.collect()
    batch = first.to_arrow()
    arrays = {**first.carries, **first.observations, "actions": first.actions}
    before = {name: array.copy() for name, array in arrays.items()}
    collector.collect()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])
    assert batch.num_rows == 6


def test_how_lanes_are_shared_out_changes_nothing() -> None:
    """Four workers of two lanes see and do what one worker of eight does."""

    def fragments(workers: int) -> list[Any]:
        lanes, settings = 8 // workers, EnvSettings(kwargs={"horizon": 5, "noise": 0.3})
        made = []
        for worker in range(workers):
            env = make_vector_env(settings, lanes)
            policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=16)), 5, 0)
            made.append(Collector(env, policy, 13, 13, seed=4, worker=worker, first_lane=worker * lanes).collect()[0])
        return made

    together, apart = fragments(1)[0], fragments(4)
    parts = [f.observations["observation"] for f in apart]
    np.testing.assert_array_equal(together.observations["observation"], np.concatenate(parts))
    for name in ("actions", "rewards", "resets", "lane", "seed"):
        np.testing.assert_array_equal(getattr(together, name), np.concatenate([getattr(f, name) for f in apart]))
    for name in ("log_probs", "values"):
        np.testing.assert_allclose(
            getattr(together, name), np.concatenate([getattr(f, name) for f in apart]), atol=1e-6
        )


def test_state_restores_exactly_in_the_middle_of_episodes(
    counting_collector: Callable[..., Collector],
) -> None:
    straight = counting_collector(seed=5)
    straight.collect()
    state = straight.state()
    assert state is not None
    expected, expected_stats = straight.collect()
    resumed = counting_collector(seed=5)
    resumed.set_state(state)
    got, stats = resumed.collect()
    np.testing.assert_array_equal(expected.observations["observation"], got.observations["observation"])
    for name in ("actions", "log_probs", "values", "rewards", "resets", "first_step"):
        np.testing.assert_array_equal(getattr(expected, name), getattr(got, name))
    np.testing.assert_array_equal(expected_stats.returns, stats.returns)
    np.testing.assert_array_equal(expected_stats.lengths, stats.lengths)


def test_a_replacement_does_not_repeat_the_past() -> None:
    env = make_vector_env(EnvSettings(kwargs={"horizon": 5}), 16)
    policy = build_policy(policy_spec(env), PolicySettings(), 5, seed=0)
    a, b = (Collector(env, policy, 12, 12, seed=0, incarnation=i).collect()[0] for i in (0, 1))
    assert not np.array_equal(a.actions, b.actions)
    assert not np.array_equal(a.observations["observation"], b.observations["observation"])


def test_episode_statistics(counting_collector: Callable[..., Collector]) -> None:
    collector = counting_collector(length=23)
    stats = [collector.collect()[1] for _ in range(2)]
    for lane, period in enumerate(LENGTHS):
        lengths = np.concatenate([s.lengths[s.lanes == lane] for s in stats])
        returns = np.concatenate([s.returns[s.lanes == lane] for s in stats])
        assert len(lengths) == 46 // period
        assert (lengths == period).all()
        assert (returns == period * (period - 1) / 2).all()
    assert stats[0].seconds["env"] > 0
    assert stats[0].seconds["inference"] > 0
    assert stats[0].seconds["recording"] > 0


def test_third_party_environments_collect_and_truncate() -> None:
    gym.register("ShortCartPole-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=5)
    env = make_vector_env(EnvSettings(id="ShortCartPole-v0"), 3)
    collector = Collector(env, build_policy(policy_spec(env), PolicySettings(), 5, seed=0), 16, 16, seed=0)
    fragment, stats = collector.collect()
    fragment.validate()
    assert np.flatnonzero(fragment.truncated[0]).tolist() == [4, 9, 14]
    assert (fragment.final_values[:, 4] != 0).all()
    assert (stats.lengths == 5).all()
    assert len(stats.successes) == 0  # it declares none
    assert collector.state() is None  # its state cannot be read
