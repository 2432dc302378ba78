"""The guard around single environments: what counts as a failure, and what a failure costs."""

import re
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from mneme.envs import EnvironmentFailure, EnvironmentMisuse, failures_in
from mneme.envs.guard import Guard, _fitted_array
from mneme.envs.plain import Misfit, Plain
from mneme.envs.told import tell_once

SPACE = spaces.Dict(
    {
        "numbers": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        "rest": spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(0, 255, (2,), np.uint8))),
        "word": spaces.Text(4),
    }
)


class Steps(gym.Env[Any, Any]):
    """Observes its own step; `fault(observation, result)` changes what a step returns, or raises."""

    metadata = {"render_modes": []}  # noqa: RUF012
    observation_space = SPACE
    action_space = spaces.Discrete(2)

    def __init__(self, fault: Callable[[dict[str, Any]], Any] | None = None, at: int = 2, length: int = 5) -> None:
        self.fault, self.at, self.length = fault, at, length
        self.seeds: list[int | None] = []
        self.info: dict[str, Any] = {}
        self.numbers = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.seeds.append(seed)
        self.t = 0
        return self.observe(), self.info

    def step(self, action: Any) -> Any:
        self.t += 1
        result = {
            "observation": self.observe(),
            "reward": 1.0,
            "terminated": self.t == self.length,
            "truncated": False,
            "info": self.info,
        }
        if self.fault is not None and self.t == self.at + 1:
            self.fault(result)
        return tuple(result.values())

    def observe(self) -> dict[str, Any]:
        self.numbers[:] = self.t  # the same array each time, as in many environments
        return {"numbers": self.numbers, "rest": (1 + self.t % 3, [self.t, 255]), "word": "word"}


def explode(result: dict[str, Any]) -> None:
    raise RuntimeError("the physics\nexploded")


def replace(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A fault that puts `value` in the place of a part of the result."""

    def fault(result: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for parent in parents:
            result = result[parent]
        result[last] = value

    return fault


FAULTS = [
    (explode, "RuntimeError: the physics exploded"),
    (replace("observation.numbers", np.array([1.0, np.nan])), r"the observation\['numbers'\] holds nan"),
    (replace("observation.numbers", np.array([-np.inf, 0.0])), r"\['numbers'\] holds -inf"),
    (
        replace("observation.numbers", np.array([1e300, 0.0])),
        r"\['numbers'\] holds 1e\+300; what is observed must be finite and at most 1.8e",
    ),
    (
        replace("observation.numbers", np.float32([0.0, 3.4e38])),
        r"\['numbers'\] holds 3.4e\+38; .* square overflows",
    ),
    (replace("observation.numbers", np.array([-2e19, 0.0])), r"\['numbers'\] holds -2e\+19; .* at most 1.8e"),
    (replace("observation.numbers", np.zeros(3)), r"\['numbers'\] has shape \(3,\) .* its space has \(2,\)"),
    (replace("observation.numbers", ["a", "b"]), r"\['numbers'\] has .* type <U1, but its space has .* float32"),
    (replace("observation.rest", (1, [0.5, 0.0])), r"\['rest'\]\[1\] has .* type float64, but .* uint8"),
    (replace("observation.rest", (1, [0, 256])), r"\['rest'\]\[1\] holds 256, outside its space Box"),
    (replace("observation.rest", (0, [0, 0])), r"\['rest'\]\[0\] holds 0, outside its space Discrete"),
    (replace("observation.rest", (1,)), r"\['rest'\] is \(1,\), but its space is a tuple of 2"),
    (replace("observation", {"numbers": np.zeros(2)}), r"is \['numbers'\], but its space has the parts \['numbers', "),
    (replace("observation", np.zeros(2)), "the observation is ndarray, but its space has the parts"),
    (replace("reward", float("nan")), "the reward is nan; it must be a finite number"),
    (replace("reward", None), "the reward is None"),
    (replace("reward", "1"), "the reward is '1'"),
    (replace("reward", [1.0, 2.0]), r"the reward is \[1.0, 2.0\]"),
    (replace("terminated", np.array([True, False])), r"terminated is array\(.*\); it must be true or false"),
    (replace("info", None), "TypeError"),
    (replace("info", {"action_mask": [1, 0]}), "there is an action mask, unlike before"),
    (replace("more", 0), "too many values to unpack"),
]


@pytest.mark.filterwarnings("error")
def test_an_infinity_is_none_the_less_one_in_half_precision() -> None:
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float16)
    assert _fitted_array(space, np.array([6e4, 1], np.float16), "x").tolist() == [60_000, 1]
    with pytest.raises(Misfit, match="x holds inf"):
        _fitted_array(space, np.array([np.inf, 1], np.float16), "x")


@pytest.mark.parametrize(("fault", "sentence"), FAULTS)
def test_a_failing_step_cuts_the_episode(fault: Callable[[dict[str, Any]], Any], sentence: str) -> None:
    env = Guard(Steps(fault), max_failures=3)
    for _ in range(2):
        env.reset()
        env.step(0)
        env.step(0)
        observation, reward, terminated, truncated, info = env.step(0)
        assert (reward, terminated, truncated) == (0.0, False, True)
        assert observation["numbers"].tolist() == [2.0, 2.0]
        with pytest.raises(AssertionError, match=f"the environment Steps failed at step 2 of an episode: .*{sentence}"):
            raise AssertionError(info["mneme.failure"])
        assert info.keys() == {"mneme.failure"}
        assert "\n" not in info["mneme.failure"]


@pytest.mark.parametrize(
    ("space", "given", "wrong"),
    [
        (spaces.Discrete(4, start=-1), 3, 3),
        (spaces.Discrete(4, start=-1), -2, -2),
        (spaces.MultiDiscrete([3, 7], start=[1, 0]), [3, 7], 7),
        (spaces.MultiDiscrete([3, 7], start=[1, 0]), [0, 6], 0),
        (spaces.MultiDiscrete([3, 7], dtype=np.uint8), [2, 256], 256),
        (spaces.MultiBinary((2, 2)), [[0, 1], [1, 2]], 2),
    ],
)
def test_a_number_outside_its_space_is_told(space: spaces.Space[Any], given: Any, wrong: int) -> None:
    env = Steps(lambda result: result.update(observation=given), at=0)
    env.observation_space = space
    env.observe = lambda: space.sample()  # type: ignore[method-assign, assignment]
    guard = Guard(env, max_failures=2)
    guard.reset(seed=0)
    told = guard.step(0)[4]["mneme.failure"]
    assert told.endswith(f"the observation holds {wrong}, outside its space {space}")


def test_what_fits_is_passed_on_in_the_types_of_the_space() -> None:
    env = Guard(Steps(replace("observation.numbers", np.array([0.5, 1.0])), at=0), max_failures=1)
    first, _ = env.reset()
    second, reward, *_ = env.step(0)
    assert first["numbers"].tolist() == [0.0, 0.0]  # although the environment has written into its array since
    assert second["numbers"].dtype == np.float32
    assert second["numbers"].tolist() == [0.5, 1.0]
    assert second["rest"][1].dtype == np.uint8
    assert second["rest"][1].tolist() == [1, 255]
    assert type(reward) is float


@pytest.mark.parametrize("reward", [1, True, np.float32(1), np.array([1.0])])
def test_a_number_of_any_kind_is_a_reward(reward: Any) -> None:
    env = Guard(Steps(replace("reward", reward), at=0), max_failures=1)
    env.reset()
    assert env.step(0)[1] == 1.0


def test_failures_in_a_row_raise_with_the_traceback() -> None:
    env = Guard(Steps(explode), max_failures=3)
    for _ in range(2):
        env.reset()
        while not env.step(0)[3]:
            pass
    env.reset()
    env.step(0)
    env.step(0)
    with pytest.raises(EnvironmentFailure) as caught:
        env.step(0)
    sentence, trace = str(caught.value).split("\n", 1)
    assert sentence.startswith(
        "the environment Steps failed at step 2 of an episode: RuntimeError: the physics exploded"
    )
    assert sentence.endswith("failure 3 in a row without an episode that ended by itself, mend the environment or "
                             "raise env.max_failures")  # fmt: skip
    assert "in explode" in trace


def test_what_an_environment_returns_wrongly_is_one_sentence_without_a_traceback() -> None:
    env = Guard(Steps(replace("reward", None), at=0), max_failures=1)
    env.reset()
    with pytest.raises(EnvironmentFailure) as caught:
        env.step(0)
    assert "episode: the reward is None; it must be a finite number; as this is failure 1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_traceback_begins_in_the_code_of_the_environment() -> None:
    env = Guard(TimeLimit(Steps(explode, at=0), 9), max_failures=1)
    env.reset()
    with pytest.raises(EnvironmentFailure) as caught:
        env.step(0)
    lines = str(caught.value).splitlines()
    assert lines[1:2] == ["Traceback (most recent call last):"]
    assert __file__ in lines[2]


def test_an_error_without_words_is_told_by_the_line_that_raised_it() -> None:
    def fault(result: dict[str, Any]) -> None:
        raise AssertionError

    env = Guard(Steps(fault, at=0), max_failures=2)
    env.reset()
    sentence = env.step(0)[4]["mneme.failure"]
    assert re.search(r"AssertionError: raise AssertionError \(.*test_guard.py, line \d+\)", sentence)


@pytest.mark.parametrize("limit", [None, 2])
def test_an_episode_that_ends_by_itself_forgives_the_failures_before_it(limit: int | None) -> None:
    steps = Steps(explode, at=0)
    env = Guard(steps if limit is None else TimeLimit(steps, limit), max_failures=2)
    for _ in range(4):
        env.reset()
        steps.at = 0
        assert "mneme.failure" in env.step(0)[4]
        env.reset()
        steps.at = 99
        while True:
            *_, terminated, truncated, _ = env.step(0)
            if terminated or truncated:
                break
        assert truncated == (limit is not None)


class Reluctant(Steps):
    """Fails to reset so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed)
        if len(self.seeds) <= self.times:
            observation["numbers"] = np.full(2, np.nan)
        return observation, info


@pytest.mark.filterwarnings("ignore:.*failed in reset")
def test_a_failing_reset_is_tried_again_with_seeds_that_all_simulators_accept() -> None:
    tries = []
    for _ in range(2):
        steps = Reluctant(times=2)
        assert Guard(steps, max_failures=3).reset(seed=2**62)[0]["numbers"].tolist() == [0.0, 0.0]
        tries.append(steps.seeds)
    assert tries[0] == tries[1]
    assert tries[0][0] == 2**62
    assert len(set(tries[0])) == 3
    assert all(0 <= seed < 2**31 for seed in tries[0][1:])
    steps = Reluctant(times=1)
    Guard(steps, max_failures=3).reset()
    assert steps.seeds == [None, None]


@pytest.mark.filterwarnings("ignore:.*failed in reset")
def test_a_reset_that_keeps_failing_raises() -> None:
    with pytest.raises(EnvironmentFailure, match="Reluctant failed in reset: .*holds nan.*failure 4 in a row"):
        Guard(Reluctant(times=99), max_failures=4).reset(seed=0)


def test_of_info_the_action_mask_is_passed_on() -> None:
    steps = Steps()
    steps.info = {"action_mask": [1, 0], "other": object()}
    env = Guard(steps, max_failures=1)
    for info in (env.reset()[1], env.step(0)[4]):
        assert info.keys() == {"action_mask"}
        assert info["action_mask"].dtype == np.bool_
        assert info["action_mask"].tolist() == [True, False]


@pytest.mark.parametrize("mask", [None, [1, 0, 1]])
def test_an_action_mask_that_changes_is_a_failure(mask: list[int] | None) -> None:
    steps = Steps(replace("info", {} if mask is None else {"action_mask": mask}), at=0)
    steps.info = {"action_mask": [1, 0]}
    env = Guard(steps, max_failures=2)
    env.reset()
    assert re.search("unlike before|each of 2 actions", env.step(0)[4]["mneme.failure"])


def test_a_final_step_needs_no_action_mask() -> None:
    steps = Steps(replace("info", {}), at=4)
    steps.info = {"action_mask": [1, 0]}
    env = Guard(steps, max_failures=1)
    env.reset()
    assert [env.step(0)[2] for _ in range(5)] == [False] * 4 + [True]


def test_a_failure_in_one_lane_leaves_the_others_alone() -> None:
    def lanes(fault: Callable[[dict[str, Any]], Any] | None) -> SyncVectorEnv:
        makers = [lambda: Guard(Steps(), 9), lambda: Guard(Steps(fault), 9), lambda: Guard(Steps(), 9)]
        return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    sound, faulty = lanes(None), lanes(explode)
    sound.reset(seed=0)
    faulty.reset(seed=0)
    told = []
    for _ in range(6):
        expected, found = sound.step([0, 0, 0]), faulty.step([0, 0, 0])
        for a, b in zip((expected[0]["numbers"], *expected[1:4]), (found[0]["numbers"], *found[1:4]), strict=True):
            np.testing.assert_array_equal(a[[0, 2]], b[[0, 2]])
        told.append(failures_in(found[4]))
        if told[-1]:
            assert found[3].tolist() == [False, True, False]
            assert found[0]["numbers"][1].tolist() == [0.0, 0.0]
            assert found[4]["final_obs"][1]["numbers"].tolist() == [2.0, 2.0]
        assert failures_in(expected[4]) == {}
    sentence = "the environment Steps failed at step 2 of an episode: RuntimeError: the physics exploded"
    assert told == [{}, {}, {1: sentence}, {}, {}, {1: sentence}]


def test_vectorisers_do_not_write_into_the_class_of_the_environment() -> None:
    env = SyncVectorEnv([lambda: Guard(Steps(), 1)], autoreset_mode=AutoresetMode.SAME_STEP)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert Steps.metadata == {"render_modes": []}


class Leaving(Steps):
    """Leaves the program by turns in `step` and in `reset`, and when it is closed."""

    left = 0

    def reset(self, **options: Any) -> Any:
        self.left += 1
        if self.left % 2 == 0:
            sys.exit(0)
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        raise Unusual("not an Exception")

    def close(self) -> None:
        sys.exit("closed")


class Unusual(BaseException):
    """As the errors of some libraries are."""


def test_leaving_the_program_is_a_failure_like_any_other() -> None:
    env = Guard(Leaving(), max_failures=3)
    assert env.reset()[1] == {}
    assert "failed at step 0 of an episode: Unusual: not an Exception" in env.step(0)[4]["mneme.failure"]
    assert "failed in reset: SystemExit: 0" in env.reset()[1]["mneme.reset_failure"]
    with pytest.raises(EnvironmentFailure, match="failure 3 in a row"):
        env.step(0)


def test_an_interruption_is_none_of_the_environments() -> None:
    def interrupt(result: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    env = Guard(Steps(interrupt, at=0), max_failures=4)
    env.reset()
    with pytest.raises(KeyboardInterrupt):
        env.step(0)


def test_a_close_that_fails_is_told_once_and_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    tell_once.cache_clear()
    for _ in range(2):
        Guard(Leaving(), max_failures=1).close()
    sentence = "the environment Leaving failed to close: SystemExit: closed; what it held may still be in use"
    assert [record.getMessage() for record in caplog.records] == [sentence]


def test_a_category_may_come_as_an_array_of_one() -> None:
    env = Guard(Steps(replace("observation.rest", ([2], [0, 0])), at=0), max_failures=1)
    env.reset()
    assert env.step(0)[0]["rest"][0].tolist() == 2


def test_a_seed_goes_to_spaces_of_its_own() -> None:
    first, second = Guard(Steps(), 1), Guard(Steps(), 1)
    first.reset(seed=3)
    samples = [first.unwrapped.action_space.sample() for _ in range(20)]
    first.reset(seed=3)
    second.reset(seed=4)
    assert [first.unwrapped.action_space.sample() for _ in range(20)] == samples
    assert first.unwrapped.action_space is not Steps.action_space


def test_a_final_info_of_another_form_is_a_vector_environments_own() -> None:
    """Gymnasium had an object array there before 1.0."""
    assert failures_in({"final_info": np.array([{"score": 1}, None], dtype=object)}) == {}


def test_another_interface_than_gymnasiums_is_not_tried_again() -> None:
    env = Guard(Plain(Steps(lambda result: result.pop("truncated"))), max_failures=100)
    env.reset()
    env.step(0)
    env.step(0)
    with pytest.raises(EnvironmentMisuse, match=r"^the environment Steps failed at step 2 .* 4 values"):
        env.step(0)
