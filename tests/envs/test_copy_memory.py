"""Copy memory: against a plain loop, and by enumeration of all policies without memory."""

import numpy as np
import pytest

from mneme.envs import CopyMemory
from tests.envs.first_episodes import (
    Episode,
    assert_even,
    memoryless_returns,
    random_episodes,
    returns_of,
    seeds_of_each_content,
)


def _play(symbols: int, shown: list[int], delay: int, dense: bool, actions: list[int]) -> Episode:
    """One episode, told step by step."""
    length = len(shown)
    seen, paid, right = [], [], 0
    for t, action in enumerate(actions):
        showing, asking = t < length, t >= length + delay
        present = shown[t] if showing else None
        one_hot = [float(symbol == present) for symbol in range(symbols)]
        seen.append([*one_hot, float(showing), float(not showing and not asking), float(asking)])
        correct = asking and action == shown[t - length - delay]
        right += correct
        if dense:
            paid.append(1 / length if correct else 0.0)
        else:
            paid.append(1.0 if t == len(actions) - 1 and right == length else 0.0)
    return Episode([*seen, [0.0] * (symbols + 3)], actions, paid)


class _Oracle:
    """Keeps the symbols, and gives them back in order."""

    def __init__(self) -> None:
        self.kept: list[np.ndarray] = []

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        if observation[0, -3]:
            self.kept.append(observation[:, :-3].argmax(axis=1))
        return self.kept.pop(0) if observation[0, -1] else np.zeros(len(observation), dtype=np.int64)


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize(("symbols", "length", "delay"), [(4, 3, 8), (2, 1, 0), (2, 1, 3), (2, 4, 0), (3, 2, 1)])
def test_every_step_is_that_of_a_plain_loop(symbols: int, length: int, delay: int, reward: str) -> None:
    env = CopyMemory(60, symbols=symbols, length=length, delay=delay, reward=reward)
    for episodes in random_episodes(env, 3 * (2 * length + delay)):
        assert len(episodes) == 3
        for episode in episodes:
            assert len(episode.actions) == env.facts.episode_length == 2 * length + delay
            shown = [view.index(1.0) for view in episode.seen[:length]]
            assert episode == _play(symbols, shown, delay, reward == "dense", episode.actions)


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize(("symbols", "length", "delay"), [(4, 3, 8), (2, 1, 0), (8, 10, 200), (8, 1, 9999), (3, 49, 0)])
def test_oracle_earns_exactly_the_optimal_return(symbols: int, length: int, delay: int, reward: str) -> None:
    env = CopyMemory(16, symbols=symbols, length=length, delay=delay, reward=reward)
    np.testing.assert_allclose(returns_of(env, _Oracle()), env.facts.optimal_return, rtol=0, atol=1e-9)
    assert env.facts.success_return == env.facts.optimal_return == 1.0


@pytest.mark.parametrize("reward", ["dense", "sparse"])
@pytest.mark.parametrize(("symbols", "length", "delay"), [(2, 1, 0), (2, 2, 1), (2, 3, 0), (3, 2, 1)])
def test_no_policy_without_memory_beats_the_memoryless_return(
    symbols: int, length: int, delay: int, reward: str
) -> None:
    def make(lanes: int) -> CopyMemory:
        return CopyMemory(lanes, symbols=symbols, length=length, delay=delay, reward=reward)

    seeds = seeds_of_each_content(make, 0)
    assert len(seeds) == symbols**length
    shown = [[*symbol, 1, 0, 0] for symbol in np.eye(symbols)]
    blank = [[*np.zeros(symbols), 0, 1, 0]] if delay else []
    asked = [[*np.zeros(symbols), 0, 0, 1]]
    returns = memoryless_returns(make, seeds, np.array(shown + blank + asked))
    assert returns.max() == pytest.approx(make(1).facts.memoryless_return, abs=1e-12)
    assert make(1).facts.chance_return == pytest.approx(symbols**-length if reward == "sparse" else 1 / symbols)


@pytest.mark.parametrize(("length", "delay"), [(1, 0), (3, 8), (10, 200)])
def test_each_symbol_is_needed_after_the_others_and_the_delay(length: int, delay: int) -> None:
    assert CopyMemory(1, length=length, delay=delay).facts.memory_horizon == length + delay


def test_symbols_are_even_and_independent_over_places_lanes_and_episodes() -> None:
    ended = random_episodes(CopyMemory(2000, symbols=3, length=2, delay=0), 8)
    shown = np.array([[np.argmax(episode.seen[:2], axis=1) for episode in episodes] for episodes in ended])
    first, second, next_first = shown[:, 0, 0], shown[:, 0, 1], shown[:, 1, 0]
    for here, there in ((first, second), (first, next_first), (second, next_first), (first[1:], first[:-1])):
        assert_even(np.stack((here, there), axis=1), kinds=9)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"symbols": 1}, ValueError, "symbols is 1; it must be at least 2"),
        ({"length": 0}, ValueError, "length is 0; it must be at least 1"),
        ({"delay": -1}, ValueError, "delay is -1; it must be at least 0"),
        ({"delay": 2.5}, TypeError, "delay is 2.5; it must be a whole number of at least 0"),
        ({"reward": "shaped"}, ValueError, "reward is 'shaped'; it must be 'dense' or 'sparse'"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        CopyMemory(2, **kwargs)  # type: ignore[arg-type]
