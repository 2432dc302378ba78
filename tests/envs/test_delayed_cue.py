"""Delayed cue: timeline, rewards, and what oracle and memoryless policies earn."""

import math

import numpy as np
import pytest

from mneme.envs import DelayedCue
from tests.envs.first_episodes import (
    Episode,
    assert_even,
    memoryless_returns,
    random_episodes,
    returns_of,
    seeds_of_each_content,
)


class _Oracle:
    """Keeps the first symbol."""

    def __init__(self) -> None:
        self.cue_B: np.ndarray | None = None

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        if self.cue_B is None:
            self.cue_B = observation[:, :-1].argmax(axis=1)
        return self.cue_B


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"cues": 2, "horizon": 1},
        {"cues": 8, "horizon": 5, "shortest_horizon": 1},
        {"horizon": 9, "distractors": 1.0},
        {"horizon": 9, "shortest_horizon": 2, "distractors": 0.5, "noise": 3.0},
        {"horizon": 10_000},
    ],
    ids=str,
)
def test_oracle_earns_exactly_the_optimal_return(kwargs: dict[str, float]) -> None:
    env = DelayedCue(64, **kwargs)  # type: ignore[arg-type]
    assert (returns_of(env, _Oracle()) == env.facts.optimal_return).all()
    assert env.facts.success_return == env.facts.optimal_return == 1.0


@pytest.mark.parametrize(("cues", "horizon"), [(2, 1), (2, 3), (3, 2), (4, 2)])
def test_no_policy_without_memory_beats_chance(cues: int, horizon: int) -> None:
    def make(lanes: int) -> DelayedCue:
        return DelayedCue(lanes, cues=cues, horizon=horizon)

    seeds = seeds_of_each_content(make, 0)
    assert len(seeds) == cues
    views = np.eye(cues + 2)[:, 1:]  # nothing at all, each cue, the query
    facts = make(1).facts
    assert memoryless_returns(make, seeds, views).max() == pytest.approx(facts.memoryless_return, abs=1e-12)
    assert facts.memoryless_return == facts.chance_return == 1 / cues


def test_facts() -> None:
    facts = DelayedCue(2, cues=5, horizon=7).facts
    assert (facts.memory_horizon, facts.episode_length) == (7, 8)
    assert (facts.optimal_return, facts.success_return) == (1.0, 1.0)
    assert facts.memoryless_return == facts.chance_return == 0.2


def _play(cues: int, cue: int, symbols: list[int | None], actions: list[int]) -> Episode:
    """One episode, told step by step, with what is shown at each step between cue and query."""
    shown = [[float(symbol == s) for s in range(cues)] for symbol in (cue, *symbols, None, None)]
    query = len(symbols) + 1
    seen = [[*one_hot, float(t == query)] for t, one_hot in enumerate(shown)]
    return Episode(seen, actions, [0.0] * query + [float(actions[query] == cue)])


def _symbols(episode: Episode) -> list[int | None]:
    """The symbol shown at each step, or None; `_play` finds out if there is something else."""
    return [int(np.argmax(view[:-1])) if any(view[:-1]) else None for view in episode.seen]


@pytest.mark.parametrize(
    ("cues", "horizon", "shortest", "distractors"),
    [(3, 4, None, 0.0), (2, 1, None, 0.0), (2, 1, 1, 1.0), (5, 6, 2, 0.0), (3, 7, 1, 0.4), (4, 3, 3, 1.0)],
)
def test_every_step_is_that_of_a_plain_loop(cues: int, horizon: int, shortest: int | None, distractors: float) -> None:
    env = DelayedCue(60, cues=cues, horizon=horizon, shortest_horizon=shortest, distractors=distractors)
    for episodes in random_episodes(env, 3 * (horizon + 1)):
        assert len(episodes) >= 3
        for episode in episodes:
            cue, *between = _symbols(episode)[:-2]
            assert cue is not None
            assert (shortest or horizon) <= len(between) + 1 <= horizon
            assert distractors > 0.0 or not any(symbol is not None for symbol in between)
            assert distractors < 1.0 or None not in between
            assert episode == _play(cues, cue, between, episode.actions)


def test_cues_are_even_over_lanes_and_over_episodes() -> None:
    ended = random_episodes(DelayedCue(1000, cues=4, horizon=1), 20)
    cue = np.array([[_symbols(episode)[0] for episode in episodes] for episodes in ended])
    assert_even(cue.ravel(), kinds=4)
    assert_even(np.stack((cue[:, 1:], cue[:, :-1]), axis=2).reshape(-1, 2), kinds=16)
    assert_even(np.stack((cue[1:], cue[:-1]), axis=2).reshape(-1, 2), kinds=16)


def test_delays_are_even_over_their_range_and_independent_of_cues() -> None:
    ended = random_episodes(DelayedCue(2000, cues=2, horizon=5, shortest_horizon=3), 12)
    contents = [[(len(episode.actions) - 1, _symbols(episode)[0]) for episode in episodes[:2]] for episodes in ended]
    assert_even([first for first, _ in contents], kinds=3 * 2)
    assert_even([(first[0], second[0]) for first, second in contents], kinds=3 * 3)


def test_a_delay_of_one_length_is_that_of_the_horizon_alone() -> None:
    alike, plain = DelayedCue(8, horizon=5, shortest_horizon=5), DelayedCue(8, horizon=5)
    assert alike.facts == plain.facts
    assert random_episodes(alike, 12) == random_episodes(plain, 12)
    assert DelayedCue(8, horizon=5, shortest_horizon=4).facts.episode_length is None


def test_distractors_come_as_often_as_said_and_say_nothing_about_the_cue() -> None:
    ended = random_episodes(DelayedCue(2000, cues=3, horizon=6, distractors=0.3), 14)
    shown = np.array([_symbols(episode)[:-2] for episodes in ended for episode in episodes], dtype=np.float64)
    cue, between = shown[:, :1], shown[:, 1:]
    seen = ~np.isnan(between)
    assert np.abs(seen.mean(axis=0) - 0.3).max() < 4 * math.sqrt(0.3 * 0.7 / 4000)
    assert np.abs(np.corrcoef(seen.T) - np.eye(5)).max() < 4 / math.sqrt(4000)
    assert_even(np.stack((np.broadcast_to(cue, seen.shape)[seen], between[seen]), axis=1), kinds=9)
    assert_even(between[seen[:, :2].all(axis=1), :2], kinds=9)


def test_distractors_and_variable_delays_leave_cues_and_noise_as_they_are() -> None:
    plain = DelayedCue(1000, horizon=6, noise=0.5)
    disturbed = DelayedCue(1000, horizon=6, noise=0.5, distractors=0.5)
    varied = DelayedCue(1000, horizon=6, noise=0.5, shortest_horizon=5)
    ours, theirs, others = (
        np.stack([env.reset(seed=3)[0]] + [env.step(np.zeros(1000, dtype=np.int64))[0] for _ in range(4)])
        for env in (plain, disturbed, varied)
    )
    np.testing.assert_array_equal(ours, others)
    np.testing.assert_array_equal(ours[0], theirs[0])
    difference = (theirs - ours)[1:].round(5)
    assert set(np.unique(difference)) == {0.0, 1.0}
    shown = difference.sum(axis=2)
    assert shown.max() == 1.0
    noise = ours[1:, :, :4][shown == 1.0] / 0.5
    assert np.abs((noise**2).mean(axis=0) - 1.0).max() < 4 * math.sqrt(2 / len(noise))


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


def test_a_seed_gives_the_episodes_that_it_always_gave() -> None:
    env = DelayedCue(12, cues=8, horizon=1)
    assert env.reset(seed=0)[0].argmax(axis=1).tolist() == [1, 4, 5, 2, 2, 3, 7, 0, 4, 4, 3, 5]
    env.step(np.zeros(12, dtype=np.int64))
    after = env.step(np.zeros(12, dtype=np.int64))[0]
    assert after.argmax(axis=1).tolist() == [4, 0, 0, 6, 5, 5, 1, 7, 6, 4, 2, 1]
    noisy = DelayedCue(2, cues=3, horizon=2, noise=0.5)
    assert noisy.reset(seed=7)[0].argmax(axis=1).tolist() == [0, 1]
    expected = [[-0.16617776, 1.10863805, 0.45644501, 0.0], [-0.76751029, 0.57469112, -0.06235963, 0.0]]
    np.testing.assert_allclose(noisy.step(np.zeros(2, dtype=np.int64))[0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"cues": 1}, ValueError, "cues is 1; it must be at least 2"),
        ({"horizon": 0}, ValueError, "horizon is 0; it must be at least 1"),
        ({"horizon": 2.5}, TypeError, "horizon is 2.5; it must be a whole number of at least 1"),
        ({"shortest_horizon": 0}, ValueError, "shortest_horizon is 0; it must be at least 1"),
        ({"shortest_horizon": 65}, ValueError, "shortest_horizon is 65; it must be at most horizon, 64"),
        ({"distractors": -0.1}, ValueError, "distractors is -0.1; it must be finite and at least 0"),
        ({"distractors": 1.5}, ValueError, "distractors is 1.5; as a probability it must be at most 1"),
        ({"distractors": True}, TypeError, "distractors is True; it must be a number of at least 0"),
        ({"noise": -0.1}, ValueError, "noise is -0.1; it must be finite and at least 0"),
        ({"noise": float("nan")}, ValueError, "noise is nan; it must be finite and at least 0"),
        ({"noise": "loud"}, TypeError, "noise is 'loud'; it must be a number of at least 0"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        DelayedCue(2, **kwargs)  # type: ignore[arg-type]
