"""Memory chain: against a plain loop with bsuite's clock, and by enumeration of all policies without memory."""

import itertools
import math

import numpy as np
import pytest

from mneme.envs import EnvSettings, facts_of, make_vector_env
from mneme.envs.memory_chain import BSUITE, MemoryChain
from tests.envs.first_episodes import memoryless_returns, returns_of, seeds_of_each_content


def _play(length: int, bits: list[int], query: int, actions: list[int]) -> tuple[list[list[float]], list[float]]:
    """Observations, the final one included, and rewards of one episode, as bsuite counts time.

    Its clock moves after an observation is made, so that reset and the first step both show time 0.
    """
    clock, seen, paid = 0, [], []

    def observe() -> list[float]:
        asked = query if clock == length - 1 else 0
        shown = bits if clock == 0 else [0] * len(bits)
        return [float(np.float32(1 - clock / length)), asked, *shown]

    seen.append(observe())
    for action in actions:
        seen.append(observe())
        clock += 1
        answered = clock == length + 1
        paid.append((1.0 if bits[query] == (1 if action else -1) else -1.0) if answered else 0.0)
    return seen, paid


@pytest.mark.parametrize(("length", "bits"), [(1, 1), (1, 3), (2, 1), (2, 5), (3, 2), (10, 1)])
def test_every_step_is_that_of_a_plain_loop(length: int, bits: int) -> None:
    lanes = 40
    env = MemoryChain(lanes, length=length, bits=bits)
    observation, _ = env.reset(seed=1)
    for actions in np.random.default_rng(0).integers(0, 2, (2, length + 1, lanes)):
        seen, paid = [observation], []
        for t, action in enumerate(actions):
            observation, reward, terminated, truncated, info = env.step(action)
            assert (terminated == (t == length)).all() and not truncated.any()
            seen.append(observation if t < length else np.stack(list(info["final_obs"])))
            paid.append(reward)
        for lane in range(lanes):
            shown = [int(bit) for bit in seen[0][lane, 2:]]
            query = int(seen[length][lane, 1])
            expected = _play(length, shown, query, actions[:, lane].tolist())
            assert ([view[lane].tolist() for view in seen], [r[lane] for r in paid]) == expected


class _Oracle:
    """Keeps the bits as first shown, and names the one that the present observation asks for."""

    def __init__(self) -> None:
        self.shown_BN: np.ndarray | None = None

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        if self.shown_BN is None:
            self.shown_BN = observation[:, 2:]
        return (self.shown_BN[np.arange(len(observation)), observation[:, 1].astype(int)] > 0).astype(np.int64)


@pytest.mark.parametrize("kwargs", [*BSUITE.values(), {"length": 10_000}, {"length": 50, "bits": 1000}], ids=str)
def test_oracle_earns_exactly_the_optimal_return(kwargs: dict[str, int]) -> None:
    env = MemoryChain(16, **kwargs)
    assert (returns_of(env, _Oracle()) == env.facts.optimal_return).all()
    assert env.facts.success_return == env.facts.optimal_return == 1.0


@pytest.mark.parametrize(("length", "bits"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)])
def test_no_policy_without_memory_beats_the_memoryless_return(length: int, bits: int) -> None:
    def make(lanes: int) -> MemoryChain:
        return MemoryChain(lanes, length=length, bits=bits)

    seeds = seeds_of_each_content(make, 0)
    assert len(seeds) == 2**bits * bits
    seen = itertools.product(range(length), range(bits), itertools.product((-1, 1), repeat=bits))
    views = {tuple(_play(length, list(shown), query, [0] * length)[0][t + 1]) for t, query, shown in seen}
    returns = memoryless_returns(make, seeds, np.array(sorted(views)))
    assert returns.max() == make(1).facts.memoryless_return == (length == 1)


@pytest.mark.parametrize("kwargs", [{"length": 1}, {"length": 2, "bits": 7}, {"length": 12}], ids=str)
def test_random_actions_earn_the_chance_return(kwargs: dict[str, int]) -> None:
    env, generator = MemoryChain(4000, **kwargs), np.random.default_rng(0)
    returns = returns_of(env, lambda observation: generator.integers(0, 2, len(observation)))
    assert env.facts.chance_return == 0.0
    assert abs(returns.mean()) < 4 / math.sqrt(4000)


def test_bits_and_questions_are_even_and_independent() -> None:
    env = MemoryChain(3000, length=1, bits=5)
    observation, _ = env.reset(seed=0)
    shown, query = observation[:, 2:], observation[:, 1].astype(int)
    assert np.abs(shown.mean(axis=0)).max() < 4 / math.sqrt(3000)
    assert np.abs(np.corrcoef(shown.T) - np.eye(5)).max() < 4 / math.sqrt(3000)
    assert np.abs(np.bincount(query, minlength=5) - 600).max() < 4 * math.sqrt(3000 * 0.2 * 0.8)
    assert abs(shown[np.arange(3000), query].mean()) < 4 / math.sqrt(3000)


def test_settings_of_bsuites_experiments() -> None:
    assert len(BSUITE) == 23 + 17
    assert BSUITE["memory_len/0"] == {"length": 1, "bits": 1}
    assert BSUITE["memory_len/22"] == {"length": 100, "bits": 1}
    assert BSUITE["memory_size/0"] == {"length": 2, "bits": 1}
    assert BSUITE["memory_size/14"] == {"length": 2, "bits": 25}
    assert BSUITE["memory_size/16"] == {"length": 2, "bits": 40}


@pytest.mark.parametrize("length", [1, 2, 30])
def test_bits_are_last_seen_one_step_after_the_reset(length: int) -> None:
    facts = MemoryChain(1, length=length).facts
    assert (facts.memory_horizon, facts.episode_length) == (length - 1, length + 1)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"length": 0}, ValueError, "length is 0; it must be at least 1"),
        ({"bits": 0}, ValueError, "bits is 0; it must be at least 1"),
        ({"bits": 1.5}, TypeError, "bits is 1.5; it must be a whole number of at least 1"),
    ],
)
def test_bad_settings_are_refused(kwargs: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        MemoryChain(2, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("id", "chosen", "fixed"), [("Len", "length", {"bits": 1}), ("Size", "bits", {"length": 2})])
def test_registered_ids_are_bsuites_experiments(id: str, chosen: str, fixed: dict[str, int]) -> None:
    env = make_vector_env(EnvSettings(id=f"mneme/Memory{id}-v0", kwargs={chosen: 7}), 2)
    assert env.single_observation_space == MemoryChain(2, **{chosen: 7}, **fixed).single_observation_space
    assert facts_of(env) == MemoryChain(2, **{chosen: 7}, **fixed).facts
