"""What policies see and earn in the episodes of chosen seeds.

With one seed for each content of an episode, means over them are exact.

Legend: B environments, S seeds, P policies, O observations, D numbers in one.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mneme.envs import MemoryVectorEnv

Make = Callable[[int], MemoryVectorEnv]
Act = Callable[[np.ndarray], np.ndarray]


class Episode(NamedTuple):
    """All that happened to one lane."""

    seen: list[list[float]]  # one observation more than there are actions: the final one is the last
    actions: list[int]
    paid: list[float]


def random_episodes(env: MemoryVectorEnv, steps: int, seed: int = 0) -> list[list[Episode]]:
    """By lane, the episodes that end within so many steps of uniformly random actions; all must terminate."""
    ended: list[list[Episode]] = [[] for _ in range(env.num_envs)]
    playing = [Episode([], [], []) for _ in range(env.num_envs)]
    observation, _ = env.reset(seed=seed)
    for action in np.random.default_rng(seed).integers(env.single_action_space.n, size=(steps, env.num_envs)):
        after, reward, terminated, truncated, info = env.step(action)
        assert not truncated.any()
        for lane, episode in enumerate(playing):
            episode.seen.append(observation[lane].tolist())
            episode.actions.append(int(action[lane]))
            episode.paid.append(float(reward[lane]))
            if terminated[lane]:
                episode.seen.append(info["final_obs"][lane].tolist())
                ended[lane].append(episode)
                playing[lane] = Episode([], [], [])
        observation = after
    return ended


def assert_even(outcomes: ArrayLike, kinds: int) -> None:
    """There are so many kinds of rows, and each stands there as often as each other, within 4 standard deviations."""
    counts = np.unique(np.asarray(outcomes), axis=0, return_counts=True)[1]
    assert len(counts) == kinds
    p, n = 1 / kinds, counts.sum()
    assert np.abs(counts - n * p).max() < 4 * math.sqrt(n * p * (1 - p))


def first_episodes(env: MemoryVectorEnv, act: Act, seed: int | Sequence[int] = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns [B] and lengths [B] of each lane's first episode, under a function from observations [B, D] to actions
    [B]; all must terminate."""
    observation, _ = env.reset(seed=seed)
    total, steps = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    playing = np.ones(env.num_envs, dtype=np.bool_)
    while playing.any():
        assert observation in env.observation_space
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        assert not (truncated & playing).any()
        total += reward * playing
        steps += playing
        playing &= ~terminated
    return total, steps


def returns_of(env: MemoryVectorEnv, act: Act, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Returns [B] of each lane's first episode."""
    return first_episodes(env, act, seed)[0]


def seeds_of_each_content(make: Make, action: int) -> list[int]:
    """Seeds [S], each of another kind of episode, as told by all that one sees who always takes `action`."""
    shown: list[np.ndarray] = []

    def act(observation: np.ndarray) -> np.ndarray:
        shown.append(observation)
        return np.full(len(observation), action)

    env = make(512)
    assert env.facts.episode_length is not None
    returns_of(env, act)
    return [int(seed) for seed in np.unique(np.stack(shown, axis=1), axis=0, return_index=True)[1]]


def memoryless_returns(make: Make, seeds: list[int], views_OD: np.ndarray) -> np.ndarray:
    """Mean returns [P] over `seeds` of every deterministic policy of the current observation.

    Args:
        make: from a number of lanes to the task.
        seeds: of one episode of each kind, when those are equally likely.
        views_OD: all observations that can be acted on.
    """
    actions = range(int(make(1).single_action_space.n))
    policy_PO = np.array(list(itertools.product(actions, repeat=len(views_OD))))
    policy_BO = np.repeat(policy_PO, len(seeds), axis=0)

    def act(observation: np.ndarray) -> np.ndarray:
        seen_BO = (observation[:, None] == views_OD).all(axis=2)
        assert (seen_BO.sum(axis=1) == 1).all()
        return policy_BO[seen_BO]

    return returns_of(make(len(policy_BO)), act, seeds * len(policy_PO)).reshape(-1, len(seeds)).mean(axis=1)
