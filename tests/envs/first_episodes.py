"""What policies earn in the first episodes of chosen seeds, where every episode has the same length.

With one seed for each content of an episode, means over them are exact.

Legend: B lanes, S seeds, P policies, O observations, D numbers in one.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from envs import MemoryVectorEnv

Make = Callable[[int], MemoryVectorEnv]
Act = Callable[[np.ndarray], np.ndarray]


def returns_of(env: MemoryVectorEnv, act: Act, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Returns [B] of one episode a lane, under a function from observations [B, D] to actions [B]."""
    assert env.facts.episode_length is not None
    observation, _ = env.reset(seed=seed)
    total = np.zeros(env.num_envs)
    for _ in range(env.facts.episode_length):
        assert observation in env.observation_space
        observation, reward, terminated, truncated, _ = env.step(act(observation))
        total += reward
    assert terminated.all() and not truncated.any()
    return total


def seeds_of_each_content(make: Make, action: int) -> list[int]:
    """Seeds [S], each of another kind of episode, as told by all that one sees who always takes `action`."""
    shown: list[np.ndarray] = []

    def act(observation: np.ndarray) -> np.ndarray:
        shown.append(observation)
        return np.full(len(observation), action)

    returns_of(make(256), act)
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
