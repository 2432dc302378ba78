"""Evaluation: as many episodes on every lane, sound intervals, and the ablation that forgets."""

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from mneme.controllers import (
    Act,
    Carry,
    Categorical,
    ControllerSettings,
    Observation,
    PolicySettings,
    PolicySpec,
    Vector,
    build_policy,
)
from mneme.envs import EnvSettings, make_vector_env
from mneme.rollout_workers import Collector, Evaluation, EvaluationError, evaluate, policy_spec
from mneme.rollout_workers.digests import EpisodeDigests
from mneme.rollout_workers.evaluation import bootstrap_interval, wilson_interval


class Rememberer:
    """A policy that copies the cue into its carry and answers with it; no learning involved."""

    action_distribution = Categorical(4)
    spec = PolicySpec({"observation": Vector(5)}, action_distribution)

    def initial_carry(self, batch: int) -> Carry:
        return {"seen": torch.zeros(batch, 4)}

    def act(
        self,
        observations: Observation,
        reset_B: Tensor,
        carry: Carry,
        uniform_BN: Tensor,
        greedy: bool = False,
    ) -> Act:
        obs_BD = observations["observation"]
        cue, query = obs_BD[:, :4], obs_BD[:, 4:]
        kept = torch.where(reset_B[:, None], 0.0, carry["seen"])
        seen = torch.where((cue.sum(-1, keepdim=True) > 0) & (query == 0), cue, kept)
        return Act(seen.argmax(-1), torch.zeros(len(obs_BD)), torch.zeros(len(obs_BD)), {"seen": seen})

    def value(self, observations: Observation, reset_B: Tensor, carry: Carry) -> Tensor:
        return torch.zeros(len(reset_B))


def run(reset_carry_at: int | None = None, episodes: int = 400):  # type: ignore[no-untyped-def]
    env = make_vector_env(EnvSettings(kwargs={"cues": 4, "horizon": 10}), 20)
    with patch("mneme.rollout_workers.collector.Actor", lambda policy, greedy: policy):
        return evaluate(env, Rememberer(), episodes=episodes, seed=0, reset_carry_at=reset_carry_at)  # type: ignore[arg-type]


def test_an_agent_that_remembers_succeeds_always() -> None:
    evaluation = run()
    assert evaluation.episodes == 400
    assert evaluation.success_rate == 1.0
    assert evaluation.mean_return == evaluation.normalized_return == 1.0
    assert evaluation.success_interval is not None
    assert evaluation.success_interval[0] > 0.98


@pytest.mark.parametrize("step", [1, 5, 10])
def test_forgetting_in_mid_episode_brings_it_to_chance(step: int) -> None:
    evaluation = run(reset_carry_at=step)
    assert evaluation.success_interval is not None
    low, high = wilson_interval(int(evaluation.successes.sum()), evaluation.episodes, z=2.576)
    assert low < 0.25 < high


def test_forgetting_before_anything_was_seen_costs_nothing() -> None:
    assert run(reset_carry_at=0).success_rate == 1.0


def test_lanes_with_short_episodes_are_not_favoured() -> None:
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), 5)  # episodes of 3, 4, 5, 6 and 7 steps
    policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=8)), 5, seed=0)
    evaluation = evaluate(env, policy, episodes=10, seed=0)
    assert sorted(evaluation.lengths.tolist()) == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def test_an_episode_that_never_ends_is_reported() -> None:
    env = make_vector_env(EnvSettings(kwargs={"horizon": 5000}), 2)
    policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=8)), 5, seed=0)
    with pytest.raises(EvaluationError, match="did not finish 1 episode of a lane in 101 steps"):
        evaluate(env, policy, episodes=2, seed=0, max_episode_steps=100)


def test_an_evaluation_that_takes_too_long_is_given_up() -> None:
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), 2)
    policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=8)), 5, seed=0)
    with pytest.raises(EvaluationError, match="0 of 6 episodes were finished after 0 seconds; ask for fewer"):
        evaluate(env, policy, episodes=5, seed=0, timeout=0.0)


@pytest.mark.parametrize(
    ("id", "kwargs", "distinct"),
    [
        ("mneme/DelayedCue-v0", {"horizon": 5, "cues": 4}, 4),
        ("mneme/TMaze-v0", {"length": 4, "walk": False}, 2),
        ("mneme/Counting-v0", {}, 5 * 3),  # told apart by lane and by the number of the episode
    ],
)
def test_it_says_how_many_episodes_are_distinct(id: str, kwargs: dict[str, Any], distinct: int) -> None:
    env = make_vector_env(EnvSettings(id=id, kwargs=kwargs), 5)
    settings = PolicySettings(controller=ControllerSettings(hidden_size=8))
    policy = build_policy(policy_spec(env), settings, 5, seed=0)
    episodes = 15 if id == "mneme/Counting-v0" else 200
    found = evaluate(env, policy, episodes=episodes, seed=0)
    assert found.distinct == distinct
    assert Evaluation.joined([found, found]).distinct == distinct


def test_equal_digests_are_equal_episodes() -> None:
    """Against the observations themselves, over fragments that end in the middle of episodes."""
    env = make_vector_env(EnvSettings(id="mneme/DelayedCue-v0", kwargs={"horizon": 4, "cues": 3}), 3)
    settings = PolicySettings(controller=ControllerSettings(hidden_size=8))
    policy = build_policy(policy_spec(env), settings, 5, seed=0)
    collector, digests = Collector(env, policy, length=7, carry_stride=7, seed=1), EpisodeDigests(3)
    seen: dict[int, set[bytes]] = {}
    running = [b""] * 3
    for _ in range(15):
        fragment, stats = collector.collect()
        ended = []
        for t in range(7):
            for lane in range(3):
                step = fragment.observations["observation"][lane, t].tobytes() + fragment.rewards[lane, t].tobytes()
                running[lane] += step
                if fragment.resets[lane, t + 1]:
                    ended.append(running[lane])
                    running[lane] = b""
        found = digests.add(fragment)
        assert len(found) == len(ended) == len(stats.returns)
        for digest, episode in zip(found.tolist(), ended, strict=True):
            seen.setdefault(digest, set()).add(episode)
    assert all(len(episodes) == 1 for episodes in seen.values())
    assert len(set.union(*seen.values())) == len(seen) >= 3


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.exponential(size=64)) or (np.nan, np.nan)
        covered += low <= 1.0 <= high
    assert 0.87 < covered / 200 < 0.99  # 95 %, and a little less for skewed values


def test_equal_returns_have_no_interval() -> None:
    assert bootstrap_interval(np.ones(512)) is None
    assert bootstrap_interval(np.array([3.0])) is None
    assert run().return_interval is None


def test_the_interval_stays_between_the_returns() -> None:
    low, high = bootstrap_interval(np.array([0.0] + [1.0] * 511)) or (np.nan, np.nan)
    assert 0.98 < low < 0.998 < high <= 1.0


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(512, 512, 0.9926, 1.0), (0, 10, 0.0, 0.2775), (128, 512, 0.2144, 0.2893)],
)
def test_wilson_interval_against_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-4)
