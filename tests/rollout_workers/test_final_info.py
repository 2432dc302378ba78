"""Numbers of an environment's own reach the statistics, one for each episode that ended."""

from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.rollout_workers import Collector, policy_spec
from mneme.rollout_workers.final_info import FinalNumbers

LENGTH = 12
NAMES = ("score", "count", "won", "deep.inner", "text", "never", "sometimes")


class Telling(gym.Env[Any, Any]):
    """Episodes of two to four steps, whose every info says how long they have been; the last says more."""

    observation_space, action_space = spaces.Discrete(9), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time, self.end = 0, int(self.np_random.integers(2, 5))
        return 0, {"score": -1.0}

    def step(self, action: Any) -> Any:
        self.time += 1
        over = self.time == self.end
        info: dict[str, Any] = {"score": np.float32(self.time / 2), "text": "x", "won": self.end == 3}
        info |= {"count": self.time, "deep": {"inner": -float(self.time)}}
        if self.end == 4:
            info["sometimes"] = 7
        return self.time, 0.0, over, False, info


def test_they_are_those_of_the_infos_with_which_episodes_ended_however_the_environment_resets() -> None:
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        env = SyncVectorEnv([Telling] * 5, autoreset_mode=mode)
        policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=4)), 4, seed=0)
        collector = Collector(env, policy, LENGTH, LENGTH, seed=0, metrics=NAMES)
        for _ in range(2):
            _, stats = collector.collect()
            told, lengths = stats.numbers, stats.lengths
            assert len(np.unique(lengths)) == 3, "short and long episodes"
            np.testing.assert_array_equal(told["score"], lengths / 2)
            np.testing.assert_array_equal(told["count"], lengths)
            np.testing.assert_array_equal(told["deep.inner"], -lengths)
            np.testing.assert_array_equal(told["won"], lengths == 3)
            np.testing.assert_array_equal(told["sometimes"], np.full((lengths == 4).sum(), 7.0))
            assert all(told[name].shape == (0,) for name in ("text", "never"))


def test_what_nobody_asked_for_is_not_kept() -> None:
    with closing(make_vector_env(EnvSettings(id="mneme/Counting-v0"), 2)) as env:
        policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=4)), 4, seed=0)
        assert Collector(env, policy, LENGTH, LENGTH, seed=0).collect()[1].numbers == {}


def test_arrays_that_are_not_one_number_a_lane_are_left_out() -> None:
    numbers = FinalNumbers(["a", "b"], next_step=False)
    numbers.add({"final_info": {"a": np.ones((2, 3)), "b": np.array([1.0, 2.0])}}, np.array([False, True]))
    taken = numbers.take()
    assert (taken["a"].tolist(), taken["b"].tolist()) == ([], [2.0])
    assert numbers.take()["b"].tolist() == []


@pytest.mark.parametrize(("next_step", "kept"), [(True, [5.0]), (False, [])])
def test_the_info_of_the_next_episode_is_not_taken_for_that_of_the_one_that_ended(
    next_step: bool, kept: list[float]
) -> None:
    """An environment that resets in the same step, and says nothing of the end."""
    numbers = FinalNumbers(["a"], next_step)
    numbers.add({"a": np.array([1.0, 5.0])}, np.array([False, True]))
    assert numbers.take()["a"].tolist() == kept


@pytest.mark.parametrize("given", ["score", [""], [3]])
def test_names_are_a_list(given: Any) -> None:
    with pytest.raises(ValueError, match=r"env.metrics is .*; it must be a list of keys of the info, as in \[score\]"):
        EnvSettings(metrics=given)
