"""Repeat previous: against a plain loop over the cards dealt, and by counting pairs of cards."""

import itertools
import math

import numpy as np
import pytest

from mneme.envs import EnvSettings, facts_of, make_vector_env
from mneme.envs.repeat_previous import RepeatPrevious
from tests.envs.first_episodes import returns_of

_LEVELS = {"easy": (4, 1), "medium": (32, 2), "hard": (64, 3)}


def _episode(env: RepeatPrevious, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Suits shown [B, N], with the last card's, and rewards [B, N - 1] of one episode under `actions` [N - 1, B]."""
    seen, paid = [env.reset()[0]], []
    for t, action in enumerate(actions, start=1):
        observation, reward, terminated, truncated, info = env.step(action)
        assert (terminated == (t == len(actions))).all() and not truncated.any()
        seen.append(observation if t < len(actions) else np.stack(list(info["final_obs"])))
        paid.append(reward)
    assert (np.sort(np.stack(seen), axis=2)[..., :-1] == 0).all()
    assert (np.stack(seen).max(axis=2) == 1).all()
    return np.stack(seen, axis=1).argmax(axis=2), np.stack(paid, axis=1)


@pytest.mark.parametrize(("k", "decks", "suits"), [(4, 1, 4), (32, 2, 4), (64, 3, 4), (51, 1, 4), (1, 1, 2), (2, 1, 7)])
def test_rewards_are_those_of_a_plain_loop_over_the_cards(k: int, decks: int, suits: int) -> None:
    env = RepeatPrevious(6, k=k, decks=decks, suits=suits)
    cards = 13 * suits * decks
    env.reset(seed=2)
    actions = np.random.default_rng(0).integers(0, suits, (2, cards - 1, 6))
    for taken in actions:
        suit, reward = _episode(env, taken)
        for lane in range(6):
            hand, expected = [], []
            for t in range(cards - 1):
                hand.append(suit[lane, t])
                right = len(hand) >= k and taken[t, lane] == hand[-k]
                expected.append(0.0 if len(hand) < k else (1 if right else -1) / (cards - k))
            np.testing.assert_array_equal(reward[lane], expected)


def test_whole_decks_are_dealt_each_time_in_another_order() -> None:
    env = RepeatPrevious(300, decks=2)
    env.reset(seed=0)
    first, second = (_episode(env, np.zeros((103, 300), dtype=np.int64))[0] for _ in range(2))
    for suit in (first, second):
        assert (np.stack([(suit == s).sum(axis=1) for s in range(4)]) == 26).all()
        assert len(np.unique(suit, axis=0)) == 300
        shares = np.stack([(suit == s).mean(axis=0) for s in range(4)])
        assert np.abs(shares - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 300)
    assert (first != second).any(axis=1).all()


class _Oracle:
    """Names the suit that was shown k - 1 steps ago."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.seen: list[np.ndarray] = []

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        self.seen = [*self.seen, observation.argmax(axis=1)][-self.k :]
        return self.seen[0]


@pytest.mark.parametrize(("k", "decks"), [*_LEVELS.values(), (1, 1), (10_000, 193)])
def test_oracle_earns_exactly_the_optimal_return(k: int, decks: int) -> None:
    env = RepeatPrevious(4, k=k, decks=decks)
    returns = returns_of(env, _Oracle(k))
    np.testing.assert_allclose(returns, env.facts.optimal_return, rtol=0, atol=1e-12)
    assert env.facts.success_return == env.facts.optimal_return


@pytest.mark.parametrize(("decks", "suits"), [(1, 2), (1, 3), (2, 4)])
def test_no_policy_without_memory_beats_the_best_over_all_pairs_of_cards(decks: int, suits: int) -> None:
    suit = [card % suits for card in range(13 * suits * decks)]
    pairs = [(now, before) for now, before in itertools.permutations(suit, 2)]
    best = max(
        sum(1 if policy[now] == before else -1 for now, before in pairs) / len(pairs)
        for policy in itertools.product(range(suits), repeat=suits)
    )
    assert RepeatPrevious(1, k=2, decks=decks, suits=suits).facts.memoryless_return == pytest.approx(best, abs=1e-14)


@pytest.mark.parametrize(("k", "decks"), [(2, 1), *_LEVELS.values()])
def test_naming_another_suit_than_the_present_one_earns_the_memoryless_return(k: int, decks: int) -> None:
    env = RepeatPrevious(2000, k=k, decks=decks)
    returns = returns_of(env, lambda observation: (observation.argmax(axis=1) + 1) % 4)
    assert abs(returns.mean() - env.facts.memoryless_return) < 4 * returns.std() / math.sqrt(2000)


def test_the_present_card_is_known_without_memory() -> None:
    env = RepeatPrevious(8, k=1)
    assert (env.facts.memory_horizon, env.facts.memoryless_return) == (0, 1.0)
    np.testing.assert_allclose(returns_of(env, lambda observation: observation.argmax(axis=1)), 1.0, atol=1e-12)


@pytest.mark.parametrize("suits", [2, 4, 5])
def test_random_actions_earn_the_chance_return(suits: int) -> None:
    env, generator = RepeatPrevious(2000, k=5, suits=suits), np.random.default_rng(0)
    returns = returns_of(env, lambda observation: generator.integers(0, suits, len(observation)))
    assert abs(returns.mean() - env.facts.chance_return) < 4 * returns.std() / math.sqrt(2000)


@pytest.mark.parametrize(("level", "episode", "memoryless"), [("easy", 51, 26 / 51 - 1), ("hard", 155, 78 / 155 - 1)])
def test_facts(level: str, episode: int, memoryless: float) -> None:
    k, decks = _LEVELS[level]
    facts = RepeatPrevious(1, k=k, decks=decks).facts
    assert (facts.memory_horizon, facts.episode_length, facts.chance_return) == (k - 1, episode, -0.5)
    assert facts.memoryless_return == pytest.approx(memoryless)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"k": 0}, ValueError, "k is 0; it must be at least 1"),
        ({"decks": 0}, ValueError, "decks is 0; it must be at least 1"),
        ({"suits": 1}, ValueError, "suits is 1; it must be at least 2"),
        ({"k": 4.0}, TypeError, "k is 4.0; it must be a whole number of at least 1"),
        ({"k": 52}, ValueError, "k is 52; it must be below 52, the number of cards, or decks must grow"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        RepeatPrevious(2, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("level", "k", "decks"), [("Easy", 4, 1), ("Medium", 32, 2), ("Hard", 64, 3)])
def test_levels_are_popgyms(level: str, k: int, decks: int) -> None:
    env = make_vector_env(EnvSettings(id=f"mneme/RepeatPrevious{level}-v0"), 2)
    assert facts_of(env) == RepeatPrevious(2, k=k, decks=decks).facts
