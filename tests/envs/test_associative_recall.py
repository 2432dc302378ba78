"""Associative recall: against a plain loop, and by enumeration of all policies without memory."""

import itertools
import math

import numpy as np
import pytest

from mneme.envs import AssociativeRecall
from tests.envs.first_episodes import (
    Episode,
    assert_even,
    memoryless_returns,
    random_episodes,
    returns_of,
    seeds_of_each_content,
)

_SETTINGS = [(4, 4, 2, 4), (1, 2, 1, 0), (5, 2, 1, 3), (3, 3, 3, 0), (6, 2, 4, 1)]  # keys, values, pairs, delay


def _contents(episode: Episode, keys: int, pairs: int) -> tuple[list[int], list[int], list[int]]:
    """Keys and values as shown, and keys as asked for."""
    seen = np.array(episode.seen)
    return (
        seen[:pairs, :keys].argmax(axis=1).tolist(),
        seen[:pairs, keys:-3].argmax(axis=1).tolist(),
        seen[-1 - pairs : -1, :keys].argmax(axis=1).tolist(),
    )


def _play(
    keys: int,
    values: int,
    delay: int,
    dense: bool,
    shown: list[int],
    told: list[int],
    asked: list[int],
    acts: list[int],
) -> Episode:
    """One episode, told step by step."""
    pairs, lookup = len(shown), dict(zip(shown, told, strict=True))
    seen, paid, right = [], [], 0
    for t, action in enumerate(acts):
        showing, asking = t < pairs, t >= pairs + delay
        key = shown[t] if showing else asked[t - pairs - delay] if asking else None
        value = told[t] if showing else None
        one_hots = [float(k == key) for k in range(keys)] + [float(v == value) for v in range(values)]
        seen.append([*one_hots, float(showing), float(not showing and not asking), float(asking)])
        correct = asking and key is not None and action == lookup[key]
        right += correct
        if dense:
            paid.append(1 / pairs if correct else 0.0)
        else:
            paid.append(1.0 if t == len(acts) - 1 and right == pairs else 0.0)
    return Episode([*seen, [0.0] * (keys + values + 3)], acts, paid)


class _Oracle:
    """Keeps each key's value."""

    def __init__(self, env: AssociativeRecall, keys: int) -> None:
        self.keys, self.lane_B = keys, np.arange(env.num_envs)
        self.value_BK = np.zeros((env.num_envs, keys), dtype=np.int64)

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        key_B = observation[:, : self.keys].argmax(axis=1)
        if observation[0, -3]:
            self.value_BK[self.lane_B, key_B] = observation[:, self.keys : -3].argmax(axis=1)
        return self.value_BK[self.lane_B, key_B]


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize(("keys", "values", "pairs", "delay"), _SETTINGS)
def test_every_step_is_that_of_a_plain_loop(keys: int, values: int, pairs: int, delay: int, reward: str) -> None:
    env = AssociativeRecall(60, keys=keys, values=values, pairs=pairs, delay=delay, reward=reward)
    for episodes in random_episodes(env, 3 * (2 * pairs + delay)):
        assert len(episodes) == 3
        for episode in episodes:
            assert len(episode.actions) == env.facts.episode_length == 2 * pairs + delay
            shown, told, asked = _contents(episode, keys, pairs)
            assert len(set(shown)) == pairs
            assert sorted(asked) == sorted(shown)
            assert episode == _play(keys, values, delay, reward == "dense", shown, told, asked, episode.actions)


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize(("keys", "values", "pairs", "delay"), [*_SETTINGS, (16, 16, 8, 200), (60, 2, 49, 9_900)])
def test_oracle_earns_exactly_the_optimal_return(keys: int, values: int, pairs: int, delay: int, reward: str) -> None:
    env = AssociativeRecall(16, keys=keys, values=values, pairs=pairs, delay=delay, reward=reward)
    np.testing.assert_allclose(returns_of(env, _Oracle(env, keys)), env.facts.optimal_return, rtol=0, atol=1e-9)
    assert env.facts.success_return == env.facts.optimal_return == 1.0


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize(("keys", "values", "pairs", "delay"), [(1, 3, 1, 1), (2, 2, 1, 0), (2, 2, 2, 1), (3, 2, 2, 0)])
def test_no_policy_without_memory_beats_the_memoryless_return(
    keys: int, values: int, pairs: int, delay: int, reward: str
) -> None:
    def make(lanes: int) -> AssociativeRecall:
        return AssociativeRecall(lanes, keys=keys, values=values, pairs=pairs, delay=delay, reward=reward)

    seeds = seeds_of_each_content(make, 0)
    assert len(seeds) == math.perm(keys, pairs) * values**pairs * math.factorial(pairs)
    key, value, nothing = np.eye(keys), np.eye(values), np.zeros(values)
    shown = [[*k, *v, 1, 0, 0] for k, v in itertools.product(key, value)]
    blank = [[*np.zeros(keys), *nothing, 0, 1, 0]] if delay else []
    asked = [[*k, *nothing, 0, 0, 1] for k in key]
    returns = memoryless_returns(make, seeds, np.array(shown + blank + asked))
    assert returns.max() == pytest.approx(make(1).facts.memoryless_return, abs=1e-12)
    assert make(1).facts.chance_return == pytest.approx(values**-pairs if reward == "sparse" else 1 / values)


@pytest.mark.parametrize(("pairs", "delay"), [(1, 0), (2, 4), (4, 200)])
def test_the_first_pair_may_be_asked_for_last(pairs: int, delay: int) -> None:
    env = AssociativeRecall(200, pairs=pairs, delay=delay)
    gaps = {
        2 * pairs + delay - 1 - shown.index(asked[-1])
        for episodes in random_episodes(env, 2 * pairs + delay)
        for shown, _, asked in (_contents(episode, 4, pairs) for episode in episodes)
    }
    assert max(gaps) == env.facts.memory_horizon == 2 * pairs + delay - 1


def test_keys_values_and_orders_are_even_independent_and_new_in_each_episode() -> None:
    ended = random_episodes(AssociativeRecall(3000, keys=3, values=2, pairs=2, delay=0), 8)
    contents = [[_contents(episode, 3, 2) for episode in episodes] for episodes in ended]
    first = [(*shown, *told, shown.index(asked[0])) for (shown, told, asked), _ in contents]
    assert_even(first, kinds=6 * 4 * 2)
    after = [(*shown, *told, shown.index(asked[0])) for _, (shown, told, asked) in contents]
    assert_even([(a[0], a[2], a[4], b[0], b[2], b[4]) for a, b in zip(first, after, strict=True)], kinds=144)
    assert_even([(a[0], a[2], b[0], b[2]) for a, b in itertools.pairwise(first)], kinds=36)


def test_questions_come_in_every_order() -> None:
    ended = random_episodes(AssociativeRecall(2000, keys=3, pairs=3, delay=1), 7)
    contents = [_contents(episode, 3, 3) for episodes in ended for episode in episodes]
    assert_even([tuple(map(shown.index, asked)) for shown, _, asked in contents], kinds=6)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"pairs": 0}, ValueError, "pairs is 0; it must be at least 1"),
        ({"pairs": 5}, ValueError, "keys is 4; it must be at least pairs, 5, so that no key stands twice"),
        ({"keys": 0}, ValueError, "keys is 0; it must be at least 1"),
        ({"values": 1}, ValueError, "values is 1; it must be at least 2"),
        ({"delay": -1}, ValueError, "delay is -1; it must be at least 0"),
        ({"keys": "many"}, TypeError, "keys is 'many'; it must be a whole number of at least 1"),
        ({"reward": None}, ValueError, "reward is None; it must be 'dense' or 'sparse'"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        AssociativeRecall(2, **kwargs)  # type: ignore[arg-type]
