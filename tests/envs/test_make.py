"""Making environments from settings, Gymnasium's registry, and finding a task's facts."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv, CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics, TransformReward

from mneme.envs import (
    Counting,
    DelayedCue,
    EnvironmentFailure,
    EnvSettings,
    TaskFacts,
    facts_of,
    failures_in,
    make_vector_env,
    resumable_form,
)
from mneme.envs.callables import id_of
from mneme.envs.delayed_cue import DelayedCueEnv


@pytest.fixture
def single_only() -> Iterator[str]:
    """An id that has a single form only."""
    name = "mneme-test/SingleOnly-v0"
    gym.register(name, entry_point=DelayedCueEnv, kwargs={"horizon": 3})
    yield name
    del gym.registry[name]


@pytest.fixture
def next_step_only() -> Iterator[str]:
    """An id that has only a vector form, and that with next-step autoreset."""
    name = "mneme-test/VectorOnly-v0"
    gym.register(name, vector_entry_point="gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv")
    yield name
    del gym.registry[name]


class Undeclared(Counting):
    """Does not say how it resets finished lanes."""

    metadata = {"render_modes": []}  # noqa: RUF012


@pytest.fixture
def registered(request: pytest.FixtureRequest) -> Iterator[str]:
    """An id with the entry points that the test is parametrised with."""
    name = "mneme-test/Registered-v0"
    gym.register(name, **request.param)
    yield name
    del gym.registry[name]


def fails(**kwargs: object) -> gym.Env:
    """A creator that cannot create."""
    raise KeyError("no licence\nfound")


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
    assert isinstance(env.unwrapped, gym.vector.SyncVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.spec.id == single_only
    native = DelayedCue(2, cues=2, horizon=3)
    np.testing.assert_array_equal(env.reset(seed=4)[0], native.reset(seed=4)[0])
    for _ in range(9):
        theirs, ours = env.step(np.array([0, 1])), native.step(np.array([0, 1]))
        for a, b in zip(theirs[:4], ours[:4], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_vector_form_with_next_step_autoreset_is_used(next_step_only: str) -> None:
    for id in ("CartPole-v1", next_step_only):
        env = make_vector_env(EnvSettings(id=id), 2)
        assert isinstance(env.unwrapped, CartPoleVectorEnv)
        assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


@pytest.mark.parametrize(
    "registered", [{"vector_entry_point": Undeclared, "entry_point": DelayedCueEnv}], indirect=True
)
def test_a_vector_form_with_no_autoreset_gives_way_to_single_environments(registered: str) -> None:
    assert isinstance(make_vector_env(EnvSettings(id=registered), 2).unwrapped, gym.vector.SyncVectorEnv)


def test_single_environments_are_taken_on_request() -> None:
    env = make_vector_env(EnvSettings(id="CartPole-v1", vectorization_mode="sync"), 2)
    assert isinstance(env.unwrapped, gym.vector.SyncVectorEnv)
    env.reset(seed=0)
    for _ in range(100):
        *_, terminated, _, info = env.step(np.zeros(2, dtype=np.int64))
        assert terminated.any() == ("final_obs" in info)


@pytest.mark.parametrize("vectorization", ["auto", "sync", "async"])
@pytest.mark.parametrize("id", ["CartPole-v1", "mneme/Counting-v0"])
def test_episodes_are_cut_at_the_limit(id: str, vectorization: str) -> None:
    kwargs = {} if id == "CartPole-v1" else {"shortest": 50}
    settings = EnvSettings(id=id, kwargs=kwargs, vectorization_mode=vectorization, max_episode_steps=4)
    env = make_vector_env(settings, 2)
    env.reset(seed=0)
    truncated = [env.step(np.zeros(2, np.int64))[3].tolist() for _ in range(5)]
    assert truncated == [[False, False]] * 3 + [[True, True], [False, False]]
    env.close()


def test_an_unset_limit_leaves_that_of_the_registration() -> None:
    env = make_vector_env(EnvSettings(id="Pendulum-v1"), 1)
    env.reset(seed=0)
    truncated = [bool(env.step(np.zeros((1, 1), np.float32))[3][0]) for _ in range(200)]
    assert truncated == [False] * 199 + [True]


@pytest.mark.parametrize("registered", [{"entry_point": fails}], indirect=True)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_raises_when_made_is_refused(registered: str, vectorization: str) -> None:
    settings = EnvSettings(id=registered, kwargs={"key": 1}, vectorization_mode=vectorization)
    with pytest.raises(
        ValueError, match=r"Registered-v0 refuses env.kwargs \{'key': 1\}: KeyError: .*no licence"
    ) as caught:
        make_vector_env(settings, 2)
    assert "\n" not in str(caught.value)


def test_lanes_are_guarded(single_only: str) -> None:
    env = make_vector_env(EnvSettings(id=single_only, max_failures=2), 2)
    env.reset(seed=0)
    assert failures_in(env.step(np.array([0, 9]))[4]).keys() == {1}
    with pytest.raises(EnvironmentFailure, match=f"the environment {single_only} failed at step 0 .*an action is 9"):
        env.step(np.array([0, 9]))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_failure_names_its_environment_as_it_was_given(vectorization: str) -> None:
    settings = EnvSettings(id="minigrid:MiniGrid-MemoryS7-v0", vectorization_mode=vectorization)
    with closing(make_vector_env(settings, 1)) as env:
        env.reset(seed=0)
        (sentence,) = failures_in(env.step(np.array([99]))[4]).values()
    assert sentence.startswith("the environment minigrid:MiniGrid-MemoryS7-v0 failed at step 0 of an episode: ")


@pytest.mark.parametrize("vectorization", ["auto", "sync", "async"])
def test_environments_render_on_request(vectorization: str) -> None:
    env = make_vector_env(EnvSettings(id="CartPole-v1", vectorization_mode=vectorization), 2, render_mode="rgb_array")
    env.reset(seed=0)
    frames = env.render()
    assert [frame.shape for frame in frames] == [(400, 600, 3)] * 2
    env.close()


def test_an_environment_that_does_not_render_is_refused(next_step_only: str) -> None:
    with pytest.raises(ValueError, match="^mneme/DelayedCue-v0 does not render as 'rgb_array'"):
        make_vector_env(EnvSettings(), 2, render_mode="rgb_array")
    with pytest.raises(ValueError, match="has no single form, and whose vector form does not render as 'ansi'"):
        make_vector_env(EnvSettings(id=next_step_only), 2, render_mode="ansi")


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
            "^env.kwargs.horizons is 3, but mneme/DelayedCue-v0 has no such setting; it accepts "
            "cues, horizon, shortest_horizon, distractors, noise$",
        ),
        (EnvSettings(kwargs={"horizon": 0}), "^env.kwargs.horizon is 0; it must be at least 1$"),
        (
            EnvSettings(kwargs={"cues": "4"}),
            "^env.kwargs.cues is '4'; it must be a whole number of at least 2$",
        ),
        (
            EnvSettings(id="CartPole-v1", kwargs={"max_episode_steps": 9}),
            "env.kwargs.max_episode_steps is 9, but CartPole-v1 has no such setting; it accepts sutton_barto_reward; "
            "env.max_episode_steps is the setting for it$",
        ),
        (
            EnvSettings(kwargs={"cues": "4"}, vectorization_mode="sync"),
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


@pytest.mark.parametrize(
    ("registered", "settings", "reason"),
    [
        ({"vector_entry_point": Undeclared}, {}, "whose vector form does not say that it resets finished lanes, .*"),
        ({"vector_entry_point": Counting}, {"vectorization_mode": "sync"}, "env.vectorization_mode is sync"),
        (
            {"vector_entry_point": Counting},
            {"max_episode_steps": 3},
            "whose vector form does not take max_episode_steps",
        ),
    ],
    indirect=["registered"],
)
def test_a_vector_form_that_does_not_serve_is_refused_where_there_is_no_other(
    registered: str, settings: dict[str, object], reason: str
) -> None:
    with pytest.raises(ValueError, match=f"has no single form, and {reason}; choose another task$"):
        make_vector_env(EnvSettings(id=registered, **settings), 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_episode_steps": 0}, "env.max_episode_steps is 0; it must be at least 1"),
        ({"max_failures": 0}, "env.max_failures is 0; it must be at least 1"),
        ({"success_return": float("nan")}, "env.success_return is nan; it must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EnvSettings(**setting)


def test_a_task_whose_code_is_missing_is_refused() -> None:
    name = "mneme-test/Missing-v0"
    gym.register(name, entry_point="no_such_module:Env")
    try:
        with pytest.raises(
            ValueError, match="whose code cannot be loaded: ModuleNotFoundError: No module named 'no_such_module'"
        ):
            make_vector_env(EnvSettings(id=name), 2)
    finally:
        del gym.registry[name]


def test_lane_count_is_checked() -> None:
    with pytest.raises(ValueError, match="num_envs is 0; it must be at least 1"):
        make_vector_env(EnvSettings(), 0)


class OwnNames(DelayedCueEnv):
    """Its own parameters bear the names of Gymnasium's; and an attribute, that of a vector environment's."""

    metadata = {"render_modes": ["human"]}  # noqa: RUF012

    def __init__(self, max_episode_steps: int = 5, num_envs: int = 2, render_mode: Any = None) -> None:
        super().__init__(horizon=max_episode_steps)
        self.num_envs, self.render_mode, self.envs = num_envs, render_mode, ["arena"]


class Bare(CartPoleEnv):
    """Says nothing about itself, and has an attribute that vector environments have too."""

    metadata = None
    envs = ("arena",)


@pytest.mark.parametrize(
    "registered",
    [{"entry_point": OwnNames}, {"entry_point": OwnNames, "vector_entry_point": DelayedCue}],
    indirect=True,
)
def test_parameters_of_its_own_reach_an_environment_whatever_their_names(registered: str) -> None:
    kwargs = {"max_episode_steps": 7, "num_envs": 4, "render_mode": "human"}
    env = make_vector_env(EnvSettings(id=registered, kwargs=kwargs), 2)
    for guard in env.unwrapped.envs:
        inner = guard.unwrapped
        assert (inner.facts.memory_horizon, inner.num_envs, inner.render_mode) == (7, 4, "human")


@pytest.mark.parametrize("registered", [{"entry_point": Bare}], indirect=True)
def test_attributes_of_an_environments_own_are_not_taken_for_ours(registered: str) -> None:
    env = make_vector_env(EnvSettings(id=registered), 2)
    assert facts_of(env) is facts_of(Bare()) is None
    assert env.reset(seed=0)[0].shape == (2, 4)


def leaves(**kwargs: object) -> gym.Env:
    sys.exit(0)


@pytest.mark.parametrize("registered", [{"entry_point": leaves}], indirect=True)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_leaves_the_program_when_made_is_refused(registered: str, vectorization: str) -> None:
    with pytest.raises(ValueError, match=r"Registered-v0 cannot be made: SystemExit: 0"):
        make_vector_env(EnvSettings(id=registered, vectorization_mode=vectorization), 2)


def test_a_port_that_another_lane_holds_is_told_with_how_lanes_get_their_own() -> None:
    def taken() -> gym.Env[Any, Any]:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    gym.register("Port-v0", entry_point=taken)
    try:
        with pytest.raises(ValueError, match=r"Address already in use; where .* port of its own, .*\{47110 \+ lane\}"):
            make_vector_env(EnvSettings(id="Port-v0"), 2)
    finally:
        del gym.registry["Port-v0"]


def test_a_wrapper_around_a_task_of_ours_does_what_it_does_and_makes_no_claim_to_be_saved() -> None:
    def scaled(num_envs: int) -> VectorEnv:
        return TransformReward(DelayedCue(num_envs, horizon=2), lambda reward: 1000 * reward)

    with closing(make_vector_env(EnvSettings(id=id_of(scaled)), 3)) as env:
        env.reset(seed=[1, 2, 3])
        rewards = np.array([env.step(np.zeros(3, np.int64))[1] for _ in range(60)])
        assert set(np.unique(rewards)) == {0.0, 1000.0}
        assert resumable_form(env) is None
    with closing(make_vector_env(EnvSettings(id="mneme/DelayedCue-v0"), 3)) as env:
        assert isinstance(env, DelayedCue)
        assert resumable_form(env) is env
