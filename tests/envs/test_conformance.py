"""What every registered task must do, whatever it is about, at ordinary and at extreme settings.

A new task belongs into SETTINGS; nothing else need be written for it here.
"""

import io
import math
import warnings
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode

from mneme.envs import MemoryVectorEnv, facts_of
from tests.envs.first_episodes import first_episodes

COUNTING = "mneme/Counting-v0"  # the one task whose lanes are numbered, and in which nothing is random

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "mneme/DelayedCue-v0": [
        {},
        {"cues": 2, "horizon": 1},
        {"horizon": 10_000},
        {"cues": 3, "horizon": 4, "noise": 0.3},
        {"horizon": 9, "shortest_horizon": 1, "distractors": 0.3},
        {"cues": 3, "horizon": 5, "shortest_horizon": 4, "distractors": 1.0, "noise": 0.1},
    ],
    "mneme/CopyMemory-v0": [
        {},
        {"symbols": 2, "length": 1, "delay": 0},
        {"length": 1, "delay": 10_000, "reward": "sparse"},
        {"symbols": 2, "length": 5_000, "delay": 0},
        {"symbols": 8, "length": 10, "delay": 20},
        {"symbols": 3, "length": 2, "delay": 1, "reward": "sparse"},
    ],
    "mneme/AssociativeRecall-v0": [
        {},
        {"keys": 1, "values": 2, "pairs": 1, "delay": 0},
        {"pairs": 1, "delay": 10_000},
        {"keys": 16, "values": 16, "pairs": 8, "delay": 3},
        {"keys": 2, "values": 3, "pairs": 2, "delay": 1, "reward": "sparse"},
    ],
    "mneme/TMaze-v0": [
        {},
        {"length": 1, "reward": "sparse"},
        {"length": 1, "active": True},
        {"length": 2, "active": True, "reward": "sparse"},
        {"length": 10_000, "active": True},
        {"length": 10_000, "walk": False},
        {"length": 6, "shortest_length": 2},
        {"length": 5, "shortest_length": 1, "active": True, "reward": "sparse"},
        {"length": 4, "shortest_length": 3, "walk": False},
    ],
    "mneme/RepeatPrevious-v0": [{}, {"k": 1}, {"k": 25, "suits": 2}, {"k": 10_000, "decks": 193}],
    "mneme/RepeatPreviousEasy-v0": [{}],
    "mneme/RepeatPreviousMedium-v0": [{}],
    "mneme/RepeatPreviousHard-v0": [{}],
    "mneme/MemoryLen-v0": [{}, {"length": 1}, {"length": 10_000}],
    "mneme/MemorySize-v0": [{}, {"bits": 1}, {"bits": 40}],
    COUNTING: [{}, {"shortest": 1, "spread": 1}, {"shortest": 10_000, "spread": 2}],
}


class Task(NamedTuple):
    id: str
    kwargs: dict[str, Any]

    def vector(self, lanes: int, first_lane: int = 0) -> MemoryVectorEnv:
        env = gym.make_vec(self.id, lanes, "vector_entry_point", **self.kwargs, **self._numbered(first_lane))
        assert isinstance(env, MemoryVectorEnv)
        return env

    def single(self, lane: int = 0) -> gym.Env[np.ndarray, np.int64]:
        return gym.make(self.id, disable_env_checker=True, **self.kwargs, **self._numbered(lane)).unwrapped

    def _numbered(self, first_lane: int) -> dict[str, int]:
        return {"first_lane": first_lane} if self.id == COUNTING else {}


TASKS = [Task(id, kwargs) for id, settings in SETTINGS.items() for kwargs in settings]


@pytest.fixture(params=TASKS, ids=lambda task: f"{task.id}-{task.kwargs}")
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


def _actions(env: MemoryVectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(env.single_action_space.n, size=(steps, env.num_envs))


def test_every_registered_task_is_in_this_suite() -> None:
    registered = {id for id in gym.registry if id.startswith("mneme/")}
    odd = sorted(registered ^ SETTINGS.keys())
    assert not odd, f"{odd} are registered or stand in SETTINGS, but not both; give each registered task its settings"


def test_single_form_passes_gymnasiums_checker_without_warnings(task: Task) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(task.single())


def test_vector_form_equals_gymnasiums_vectorised_single_form(task: Task) -> None:
    vector = task.vector(3)
    spaces = vector.observation_space, vector.single_observation_space
    reference = gym.vector.SyncVectorEnv(
        [lambda lane=lane: task.single(lane) for lane in range(3)],
        observation_mode=spaces,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    assert vector.action_space == reference.action_space
    assert data_equivalence(vector.reset(seed=11), reference.reset(seed=11), exact=True)
    actions = _actions(vector, 174)
    for action in actions[:4]:
        assert data_equivalence(vector.step(action), reference.step(action), exact=True)
    options = {"reset_mask": np.array([True, False, True])}  # so that one lane is asked when others begin
    ours, theirs = (env.reset(seed=[1, 2, 3], options=dict(options)) for env in (vector, reference))
    assert data_equivalence(ours, theirs, exact=True)
    for action in actions[4:]:
        assert data_equivalence(vector.step(action), reference.step(action), exact=True)
    assert data_equivalence(vector.reset(), reference.reset(), exact=True)


def test_what_it_returns_is_of_the_declared_spaces_and_types(task: Task) -> None:
    env = task.vector(6)
    observation, info = env.reset(seed=0)
    assert observation in env.observation_space
    assert info == {}
    for action in _actions(env, 170):
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        over = terminated | truncated
        assert info.keys() == ({"final_obs", "_final_obs", "final_info", "_final_info"} if over.any() else set())
        for lane, final in enumerate(info.get("final_obs", ())):
            assert final in env.single_observation_space if over[lane] else final is None


def test_a_lane_depends_on_its_seed_and_episode_only(task: Task) -> None:
    whole, part = task.vector(4), task.vector(2, first_lane=1)
    np.testing.assert_array_equal(whole.reset(seed=20)[0][1:3], part.reset(seed=[21, 22])[0])
    for action in _actions(whole, 170):
        for ours, theirs in zip(whole.step(action)[:4], part.step(action[1:3])[:4], strict=True):
            np.testing.assert_array_equal(ours[1:3], theirs)


def test_another_seed_and_another_episode_have_other_contents(task: Task) -> None:
    def shown(seed: int, episode: int) -> np.ndarray:
        env = task.vector(32)
        observation, _ = env.reset(seed=seed)
        for _ in range(episode):
            observation, _ = env.reset()
        return np.stack([observation, *(env.step(action)[0] for action in _actions(env, 30))])

    first = shown(seed=0, episode=0)
    assert np.array_equal(first, shown(seed=0, episode=0))
    assert np.array_equal(first, shown(seed=1000, episode=0)) == (task.id == COUNTING)
    assert not np.array_equal(first, shown(seed=0, episode=1))


def test_returned_arrays_are_never_written_again(task: Task) -> None:
    env = task.vector(4)
    returned = [env.reset(seed=0)[0]]
    for action in _actions(env, 60):
        observation, reward, terminated, truncated, info = env.step(action)
        returned += [observation, reward, terminated, truncated, *info.values()]
        returned += [final for final in info.get("final_obs", ()) if final is not None]
    returned = [array for array in returned if isinstance(array, np.ndarray)]
    kept = [array.copy() for array in returned]
    for action in _actions(env, 60, seed=1):
        env.step(action)
    env.reset()
    assert data_equivalence(returned, kept, exact=True)


def test_a_restored_environment_continues_exactly_from_any_step(task: Task) -> None:
    env, restored = task.vector(5), task.vector(5)
    env.reset(seed=3)
    actions = _actions(env, 60)
    saved, steps = [], []
    for action in actions:
        file = io.BytesIO()
        np.savez(file, **env.get_state())
        saved.append(file)
        steps.append(env.step(action))
    for start, file in enumerate(saved[:-10]):
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            restored.set_state(dict(arrays))
        for action, expected in zip(actions[start : start + 10], steps[start : start + 10], strict=True):
            assert data_equivalence(restored.step(action), expected, exact=True)
    restored.set_state(env.get_state())
    assert data_equivalence(restored.reset(), env.reset(), exact=True)


def test_state_is_a_few_integers_a_lane(task: Task) -> None:
    env = task.vector(7)
    env.reset(seed=0)
    state = env.get_state()
    assert {"key", "episode", "step"} <= state.keys() and len(state) <= 5
    for array in state.values():
        assert array.shape == (7,) and array.dtype.kind in "iu"


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("DelayedCue", "horizon"),
        ("CopyMemory", "delay"),
        ("AssociativeRecall", "delay"),
        ("TMaze", "length"),
        ("MemoryLen", "length"),
    ],
)
def test_a_longer_delay_takes_no_more_memory_a_lane(name: str, setting: str) -> None:
    def bytes_a_lane(delay: int) -> int:
        few, many = (
            sum(array.nbytes for array in vars(env).values() if isinstance(array, np.ndarray))
            for env in (Task(f"mneme/{name}-v0", {setting: delay}).vector(lanes) for lanes in (1, 101))
        )
        return (many - few) // 100

    assert bytes_a_lane(1) == bytes_a_lane(10_000)


def test_random_actions_earn_the_chance_return_in_episodes_of_the_declared_length(task: Task) -> None:
    length = task.vector(1).facts.episode_length
    env, generator = task.vector(4000 if length is None or length < 1000 else 200), np.random.default_rng(0)
    returns, steps = first_episodes(env, lambda _: generator.integers(env.single_action_space.n, size=env.num_envs))
    if env.facts.episode_length is None:
        assert steps.min() < steps.max()
    else:
        assert (steps == env.facts.episode_length).all()
    widest = 3.29 * returns.std() / math.sqrt(len(returns))  # half the 99.9 % interval of the mean
    assert abs(returns.mean() - env.facts.chance_return) <= widest + 1e-9


def test_facts_agree_with_each_other(task: Task) -> None:
    facts = task.vector(3).facts
    assert facts.optimal_return >= facts.memoryless_return >= facts.chance_return
    assert facts.success_return <= facts.optimal_return
    assert 0 <= facts.memory_horizon < (facts.episode_length or math.inf)
    assert facts_of(task.single()) == task.vector(1).facts
    if facts.optimal_return > facts.memoryless_return:
        assert facts.normalized_return(facts.memoryless_return) == 0.0
        assert facts.normalized_return(facts.optimal_return) == 1.0
        assert facts.normalized_return(facts.memoryless_return - 1.0) < 0.0
    else:
        assert facts.memory_horizon == 0
        assert math.isnan(facts.normalized_return(facts.optimal_return))


def test_a_setting_that_the_task_does_not_have_is_refused(task: Task) -> None:
    with pytest.raises(TypeError, match="no_such_setting"):
        Task(task.id, {**task.kwargs, "no_such_setting": 1}).vector(2)
    with pytest.raises(ValueError, match="num_envs is 0; it must be at least 1"):
        task.vector(0)
