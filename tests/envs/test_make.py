"""Making environments from settings, Gymnasium's registry, and finding a task's facts."""

from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from envs import Counting, DelayedCue, EnvSettings, TaskFacts, facts_of, make_vector_env
from envs.delayed_cue import DelayedCueEnv


@pytest.fixture
def single_only() -> Iterator[str]:
    """An id that has a single form only."""
    name = "mneme-test/SingleOnly-v0"
    gym.register(name, entry_point=DelayedCueEnv, kwargs={"horizon": 3})
    yield name
    del gym.registry[name]


@pytest.fixture
def next_step_only() -> Iterator[str]:
    """An id that has only a vector form, and that with another autoreset."""
    name = "mneme-test/VectorOnly-v0"
    gym.register(name, vector_entry_point="gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv")
    yield name
    del gym.registry[name]


@pytest.mark.parametrize(("id", "form"), [("mneme/DelayedCue-v0", DelayedCue), ("mneme/Counting-v0", Counting)])
def test_ids_are_registered_in_both_forms(id: str, form: type) -> None:
    assert isinstance(gym.make_vec(id, num_envs=3), form)
    assert isinstance(make_vector_env(EnvSettings(id=id), 3), form)
    single = gym.make(id)
    assert isinstance(facts_of(single), TaskFacts)
    assert gym.make(single.spec).spec == single.spec


def test_settings_reach_the_task() -> None:
    env = make_vector_env(EnvSettings(kwargs={"cues": 3, "horizon": 7}), 2)
    assert env.num_envs == 2
    assert env.single_action_space.n == 3
    assert facts_of(env).memory_horizon == 7


def test_default_settings_are_not_shared() -> None:
    EnvSettings().kwargs["cues"] = 3
    assert EnvSettings().kwargs == {}


def test_single_form_is_vectorised_with_same_step_autoreset(single_only: str) -> None:
    env = make_vector_env(EnvSettings(id=single_only, kwargs={"cues": 2}), 2)
    assert isinstance(env, gym.vector.SyncVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    native = DelayedCue(2, cues=2, horizon=3)
    np.testing.assert_array_equal(env.reset(seed=4)[0], native.reset(seed=4)[0])
    for _ in range(9):
        theirs, ours = env.step(np.array([0, 1])), native.step(np.array([0, 1]))
        for a, b in zip(theirs[:4], ours[:4], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_vector_form_with_another_autoreset_is_not_used() -> None:
    env = make_vector_env(EnvSettings(id="CartPole-v1"), 2)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset(seed=0)
    for _ in range(100):
        *_, terminated, _, info = env.step(np.zeros(2, dtype=np.int64))
        assert terminated.any() == ("final_obs" in info)


def test_a_package_is_imported_on_request() -> None:
    assert isinstance(make_vector_env(EnvSettings(id="envs:mneme/Counting-v0"), 2), Counting)


def test_facts_are_found_through_wrappers_and_vectorisers(single_only: str) -> None:
    facts = DelayedCue(2, horizon=3).facts
    assert facts_of(RecordEpisodeStatistics(DelayedCue(2, horizon=3))) == facts
    assert facts_of(make_vector_env(EnvSettings(id=single_only), 2)) == facts
    assert facts_of(make_vector_env(EnvSettings(id="CartPole-v1"), 2)) is None
    assert facts_of(gym.make("CartPole-v1")) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            EnvSettings(id="mneme/DelayedCeu-v0"),
            "env.id is 'mneme/DelayedCeu-v0', which is not registered; the nearest are mneme/DelayedCue-v0",
        ),
        (EnvSettings(id="CartPoel-v1"), "which is not registered; the nearest are CartPole-v1"),
        (EnvSettings(id="?"), "which is not registered; the nearest are mneme/"),
        (EnvSettings(id="no_such_package:Task-v0"), "but 'no_such_package' cannot be imported"),
        (
            EnvSettings(kwargs={"horizons": 3}),
            "^env.kwargs.horizons is 3, but mneme/DelayedCue-v0 has no such setting; it accepts cues, horizon, noise$",
        ),
        (EnvSettings(kwargs={"horizon": 0}), "^env.kwargs.horizon is 0; it must be at least 1$"),
        (
            EnvSettings(kwargs={"cues": "4"}),
            "^env.kwargs.cues is '4'; it must be a whole number of at least 2$",
        ),
        (
            EnvSettings(id="CartPole-v1", kwargs={"gravity": 1}),
            "env.kwargs.gravity is 1, but CartPole-v1 has no such setting; it accepts sutton_barto_reward$",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(settings: EnvSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_vector_env(settings, 2)
    assert "\n" not in str(caught.value)


def test_a_task_that_cannot_reset_in_the_same_step_is_refused(next_step_only: str) -> None:
    with pytest.raises(ValueError, match="has no single form, and whose vector form does not reset finished lanes"):
        make_vector_env(EnvSettings(id=next_step_only), 2)


def test_a_task_whose_code_is_missing_is_refused() -> None:
    name = "mneme-test/Missing-v0"
    gym.register(name, entry_point="no_such_module:Env")
    try:
        with pytest.raises(ValueError, match="whose code cannot be loaded: No module named 'no_such_module'"):
            make_vector_env(EnvSettings(id=name), 2)
    finally:
        del gym.registry[name]


def test_lane_count_is_checked() -> None:
    with pytest.raises(ValueError, match="num_envs is 0; it must be at least 1"):
        make_vector_env(EnvSettings(), 0)
