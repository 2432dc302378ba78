"""Delayed cue: timeline, rewards, and what oracle and memoryless policies earn."""

import math

import numpy as np
import pytest

from envs import DelayedCue


def _episodes(env: DelayedCue, remember: bool, count: int) -> np.ndarray:
    """Returns of `count` episodes of every lane, [count * lanes], answering with the cue seen or with 0."""
    observation, _ = env.reset(seed=0)
    cue = np.zeros(env.num_envs, dtype=np.int64)
    total, returns = np.zeros(env.num_envs), []
    while len(returns) < count:
        shown = observation[:, :-1].max(axis=1) == 1.0
        cue[shown] = observation[shown, :-1].argmax(axis=1)
        action = cue if remember else np.zeros_like(cue)
        observation, reward, terminated, _, _ = env.step(action)
        total += reward
        if terminated.all():
            returns.append(total.copy())
            total[:] = 0.0
    return np.concatenate(returns)


@pytest.mark.parametrize(("cues", "horizon"), [(4, 64), (2, 1), (8, 5)])
def test_oracle_earns_exactly_the_optimal_return(cues: int, horizon: int) -> None:
    env = DelayedCue(16, cues=cues, horizon=horizon)
    returns = _episodes(env, remember=True, count=4)
    assert (returns == env.facts.optimal_return).all()
    assert (returns >= env.facts.success_return).all()


@pytest.mark.parametrize("cues", [2, 4, 8])
def test_a_policy_without_memory_stays_at_chance(cues: int) -> None:
    env = DelayedCue(512, cues=cues, horizon=2)
    returns = _episodes(env, remember=False, count=20)
    p, n = env.facts.memoryless_return, len(returns)
    assert p == env.facts.chance_return == 1 / cues
    assert abs(returns.mean() - p) <= 2.576 * math.sqrt(p * (1 - p) / n)


def test_facts() -> None:
    facts = DelayedCue(2, cues=5, horizon=7).facts
    assert (facts.memory_horizon, facts.episode_length) == (7, 8)
    assert (facts.optimal_return, facts.success_return) == (1.0, 1.0)
    assert facts.memoryless_return == facts.chance_return == 0.2


def test_timeline_of_one_episode() -> None:
    env = DelayedCue(5, cues=3, horizon=4)
    observation, info = env.reset(seed=1)
    assert info == {}
    assert observation.dtype == np.float32
    cue = observation[:, :3].argmax(axis=1)
    np.testing.assert_array_equal(observation, np.pad(np.eye(3)[cue], ((0, 0), (0, 1))))
    for t in range(1, 5):
        observation, reward, terminated, truncated, info = env.step(cue)
        assert info == {}
        assert not reward.any() and not terminated.any() and not truncated.any()
        assert not observation[:, :3].any()
        assert (observation[:, 3] == (t == 4)).all()
    answer = np.where(np.arange(5) < 3, cue, (cue + 1) % 3)
    observation, reward, terminated, truncated, info = env.step(answer)
    np.testing.assert_array_equal(reward, [1, 1, 1, 0, 0])
    assert terminated.all() and not truncated.any()
    assert not np.stack(list(info["final_obs"])).any()
    assert (observation[:, :3].sum(axis=1) == 1).all()


def test_cues_are_even_over_lanes_and_over_episodes() -> None:
    env = DelayedCue(1000, cues=4, horizon=1)
    observation, _ = env.reset(seed=3)
    shown = [observation[:, :4]]
    for _ in range(20):
        env.step(np.zeros(1000, dtype=np.int64))
        observation, *_ = env.step(np.zeros(1000, dtype=np.int64))
        shown.append(observation[:, :4])
    over_lanes = np.stack(shown)
    assert np.abs(over_lanes.sum(axis=(0, 1)) - 5250).max() < 4 * math.sqrt(21_000 * 0.25 * 0.75)
    cue = over_lanes.argmax(axis=2)
    repeats = (cue[1:] == cue[:-1]).mean()
    assert abs(repeats - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 20_000)


def test_noise_is_gaussian_between_cue_and_query_only() -> None:
    env = DelayedCue(256, cues=4, horizon=10, noise=0.5)
    clean = DelayedCue(256, cues=4, horizon=10)
    action = np.zeros(256, dtype=np.int64)
    observations = [env.reset(seed=5)[0]] + [env.step(action)[0] for _ in range(10)]
    expected = [clean.reset(seed=5)[0]] + [clean.step(action)[0] for _ in range(10)]
    for t in (0, 10):
        np.testing.assert_array_equal(observations[t], expected[t])
    blank = np.stack(observations[1:10])
    assert not blank[..., 4].any()
    values = blank[..., :4].ravel()
    assert abs(values.mean()) < 4 * 0.5 / math.sqrt(values.size)
    assert abs(values.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * values.size)
    assert len(np.unique(values)) > 0.99 * values.size
    assert all(observation in env.observation_space for observation in observations)


def test_noise_does_not_depend_on_how_lanes_are_grouped() -> None:
    whole, alone = DelayedCue(4, horizon=5, noise=1.0), DelayedCue(1, horizon=5, noise=1.0)
    whole.reset(seed=7)
    alone.reset(seed=9)
    for _ in range(14):
        together = whole.step(np.zeros(4, dtype=np.int64))[0]
        np.testing.assert_array_equal(together[2:3], alone.step(np.zeros(1, dtype=np.int64))[0])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"cues": 1}, ValueError, "cues is 1; it must be at least 2"),
        ({"horizon": 0}, ValueError, "horizon is 0; it must be at least 1"),
        ({"horizon": 2.5}, TypeError, "horizon is 2.5; it must be a whole number of at least 1"),
        ({"noise": -0.1}, ValueError, "noise is -0.1; it must be finite and at least 0"),
        ({"noise": float("nan")}, ValueError, "noise is nan; it must be finite and at least 0"),
        ({"noise": "loud"}, TypeError, "noise is 'loud'; it must be a number of at least 0"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        DelayedCue(2, **kwargs)  # type: ignore[arg-type]
