"""Other people's environments: popgym, MiniGrid and Gymnasium's own, in every vectorisation."""

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from mneme.envs import EnvSettings, failures_in, make_vector_env

LANES = 2
STEPS = 120

TASKS = {
    "popgym:popgym-PositionOnlyCartPoleEasy-v0": (spaces.Box, spaces.Discrete),  # CartPole with hidden velocities
    "popgym:popgym-RepeatPreviousEasy-v0": (spaces.Discrete, spaces.Discrete),
    "popgym:popgym-BattleshipEasy-v0": (spaces.Discrete, spaces.MultiDiscrete),
    "popgym:popgym-PositionOnlyPendulumEasy-v0": (spaces.Box, spaces.Box),
    "popgym:popgym-AutoencodeEasy-v0": (spaces.Tuple, spaces.Discrete),
    "popgym:popgym-CountRecallEasy-v0": (spaces.MultiDiscrete, spaces.Discrete),
    "minigrid:MiniGrid-MemoryS7-v0": (spaces.Dict, spaces.Discrete),
    "CartPole-v1": (spaces.Box, spaces.Discrete),
    "Pendulum-v1": (spaces.Box, spaces.Box),
    "Taxi-v3": (spaces.Discrete, spaces.Discrete),  # with an action mask in info
}


def make(id: str, vectorization: str) -> gym.vector.VectorEnv[Any, Any, Any]:
    settings = EnvSettings(
        id=id, vectorization_mode=vectorization, max_episode_steps=50, max_failures=1
    )  # none is forgiven
    return make_vector_env(settings, LANES)


def play(env: gym.vector.VectorEnv[Any, Any, Any], seed: int) -> list[tuple[Any, ...]]:
    """What random actions bring: observations, rewards, endings and final observations, step by step."""
    env.action_space.seed(seed)
    steps: list[tuple[Any, ...]] = [env.reset(seed=seed)[:1]]
    for _ in range(STEPS):
        *step, info = env.step(env.action_space.sample())
        assert failures_in(info) == {}
        final = info.get("final_obs")
        steps.append((*step, None if final is None else list(final), info.get("action_mask")))
    return steps


@pytest.mark.parametrize("id", TASKS)
def test_spaces_are_those_that_the_task_declares(id: str) -> None:
    env = make(id, "auto")
    observed, acted = TASKS[id]
    assert isinstance(env.single_observation_space, observed)
    assert isinstance(env.single_action_space, acted)


@pytest.mark.parametrize("vectorization", ["auto", "sync", "async"])
@pytest.mark.parametrize("id", TASKS)
def test_episodes_follow_from_the_seed_and_reset_by_themselves(id: str, vectorization: str) -> None:
    env = make(id, vectorization)
    first, again, other = play(env, 3), play(env, 3), play(env, 4)
    env.close()
    np.testing.assert_equal(first, again)
    with pytest.raises(AssertionError):
        np.testing.assert_equal(first, other)
    for _, reward, terminated, truncated, final, _ in first[1:]:
        assert np.isfinite(reward).all()
        if env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            done = terminated | truncated
            assert (final is not None) == done.any()
            if final is not None:
                assert [value is not None for value in final] == done.tolist()
    ends = np.array([step[2] | step[3] for step in first[1:]])
    assert (ends.sum(axis=0) >= STEPS // 51).all()  # a reset may take a step of its own


@pytest.mark.parametrize("id", TASKS)
def test_subprocesses_play_the_same_episodes(id: str) -> None:
    runs = []
    for vectorization in ("sync", "async"):
        env = make(id, vectorization)
        runs.append(play(env, 5))
        env.close()
    np.testing.assert_equal(runs[0], runs[1])


def test_the_vector_form_of_cartpole_resets_in_the_next_step() -> None:
    env = make("CartPole-v1", "auto")
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    steps = play(env, 0)[1:]
    for (_, _, terminated, truncated, *_), (observation, reward, *_) in pairwise(steps):
        done = terminated | truncated
        assert (reward[done] == 0).all()
        assert (np.abs(observation[done]) <= 0.05).all()  # where CartPole starts


def test_action_masks_arrive() -> None:
    env = make("Taxi-v3", "auto")
    _, info = env.reset(seed=0)
    assert info["action_mask"].shape == (LANES, 6)
    assert info["action_mask"].dtype == np.bool_
