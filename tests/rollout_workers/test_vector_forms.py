"""Other people's vector forms: masks that allow nothing cut one lane's episode, masks come from wherever they stand,
and what leaves the program is a failure."""

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvironmentFailure, EnvSettings, make_vector_env
from mneme.rollout_workers import Collector, policy_spec

MODES = (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP)
LENGTH = 4  # of all episodes
COUNTS = (2, 3)  # of actions; what is allowed is (0, 2)
ALLOWED = [True, False, False, False, True]


class Boards(VectorEnv[Any, Any, Any]):
    """Shows the episode and the step of each lane. `empty` lists (lane, episode, step) without an allowed action; there
    alone it takes any."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs: int, where: str = "info", empty: Any = (), fault: Any = None) -> None:
        self.num_envs, self.where, self.fault = num_envs, where, fault
        self.empty = set(map(tuple, empty))
        counter = spaces.Box(0, 100, (2,), np.float32)
        mask = spaces.Tuple([spaces.MultiBinary(n) for n in COUNTS])
        in_observation = where == "observation"
        self.single_observation_space = (
            spaces.Dict({"counter": counter, "action_mask": mask}) if in_observation else counter
        )
        self.single_action_space = spaces.MultiDiscrete(COUNTS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if where == "method":
            self.action_masks = lambda: list(self._masks())
        elif where == "attribute":
            self.action_masks = self._masks()[0]

    def _without_choice(self) -> list[bool]:
        return [(lane, *self.at[lane]) in self.empty for lane in range(self.num_envs)]

    def _masks(self) -> np.ndarray:
        masks = np.array([ALLOWED] * self.num_envs)
        masks[self._without_choice() if hasattr(self, "at") else [], 2:] = False  # the second part of the action
        return masks

    def _shown(self) -> tuple[Any, dict[str, Any]]:
        counter, masks = self.at.astype(np.float32), self._masks()
        if self.where == "observation":
            return {"counter": counter, "action_mask": (masks[:, :2].astype(np.int8), masks[:, 2:].astype(np.int8))}, {}
        return counter, {"action_mask": masks} if self.where == "info" else {}

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if self.fault == "reset":
            raise SystemExit("gone")
        self.at = np.zeros((self.num_envs, 2), int)
        self.over = np.zeros(self.num_envs, bool)
        return self._shown()

    def step(self, actions: Any) -> Any:
        if self.fault == "step":
            raise SystemExit("gone")
        legal = (actions == (0, 2)).all(axis=1) | self._without_choice() | self.over
        assert legal.all() or self.where in ("attribute", "nowhere"), actions
        next_step = self.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        resets = self.over if next_step else np.zeros(self.num_envs, bool)
        self.at[:, 1] += 1
        self.at[resets] = self.at[resets] * (1, 0) + (1, 0)
        self.over = (self.at[:, 1] == LENGTH) & ~resets
        over = self.over.copy()
        if not next_step:
            self.at[over] = self.at[over] * (1, 0) + (1, 0)
            self.over[:] = False
        return *self._shown()[:1], np.where(resets, 0.0, 1.0), over, np.zeros(self.num_envs, bool), self._shown()[1]


class BoardsOfNextStep(Boards):
    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP}


@pytest.fixture(params=MODES, ids=str)
def mode(request: pytest.FixtureRequest) -> Iterator[AutoresetMode]:
    mode = request.param
    gym.register(
        "mneme-test/Boards-v0", vector_entry_point=Boards if mode is AutoresetMode.SAME_STEP else BoardsOfNextStep
    )
    yield mode
    del gym.registry["mneme-test/Boards-v0"]


def collector_of(length: int, lanes: int = 3, max_failures: int = 5, **kwargs: Any) -> Collector:
    env = make_vector_env(EnvSettings(id="mneme-test/Boards-v0", kwargs=kwargs, max_failures=max_failures), lanes)
    policy = build_policy(policy_spec(env), PolicySettings(controller=ControllerSettings(hidden_size=8)), 5, seed=0)
    return Collector(env, policy, length, 1, seed=0)


@pytest.mark.parametrize("where", ["info", "observation", "method"])
def test_a_mask_that_allows_nothing_cuts_its_lane_until_that_ends_its_episode(mode: AutoresetMode, where: str) -> None:
    collector = collector_of(22, where=where, empty=[(1, 0, 2), (1, 0, 3), (2, 1, 0)])
    fragment, stats = collector.collect()
    fragment.validate()
    filler = int(mode is AutoresetMode.NEXT_STEP)
    period = LENGTH + filler

    def invalid(lane: int) -> list[int]:
        return np.flatnonzero(~fragment.valid[lane]).tolist()

    fillers = list(range(LENGTH, 22, period)) if filler else []
    assert invalid(0) == fillers
    assert invalid(1) == sorted({1, 2, 3, *fillers})  # the step that showed the mask, and all until the end
    assert invalid(2) == sorted({*range(period, period + LENGTH), *fillers})  # the whole second episode
    for lane in range(3):
        lost = int(lane > 0)
        assert (stats.lanes == lane).sum() == (22 - filler) // period - lost
        assert fragment.terminated[lane].sum() == (stats.lanes == lane).sum()
    assert set(stats.returns) == {LENGTH} == set(stats.lengths)
    assert not fragment.rewards[~fragment.valid].any()
    assert sorted(stats.failures) == [
        "the environment mneme-test/Boards-v0 failed in a reset of lane 2: the action mask allows none of 3 actions; "
        "the lane counts again once it has ended this episode by itself",
        "the environment mneme-test/Boards-v0 failed in a step of lane 1: the action mask allows none of 3 actions; "
        "the lane counts again once it has ended this episode by itself",
    ]


def test_a_mask_that_allows_nothing_at_the_very_start_costs_that_episode(mode: AutoresetMode) -> None:
    fragment, stats = collector_of(LENGTH + 2, empty=[(0, 0, 0)]).collect()
    first_valid = LENGTH + int(mode is AutoresetMode.NEXT_STEP)
    assert np.flatnonzero(fragment.valid[0]).tolist() == list(range(first_valid, LENGTH + 2))
    assert len(stats.failures) == 1 and "failed in a reset of lane 0" in stats.failures[0]
    assert 0 not in stats.lanes


def test_masks_that_allow_nothing_end_the_worker_where_no_episode_comes_between_them(mode: AutoresetMode) -> None:
    apart = [(0, 0, 1), (0, 2, 1), (0, 4, 1)]
    _, stats = collector_of(40, max_failures=2, empty=apart).collect()
    assert len(stats.failures) == 3
    with pytest.raises(EnvironmentFailure, match="lane 0: .*; as this is failure 2 in a row .*max_failures$"):
        collector_of(40, max_failures=2, empty=[(0, 0, 1), (0, 1, 1)]).collect()


def test_masks_of_a_method_are_used_and_an_attribute_of_that_name_is_told(
    mode: AutoresetMode, caplog: pytest.LogCaptureFixture
) -> None:
    fragment, _ = collector_of(8, where="method").collect()
    assert (fragment.actions == (0, 2)).all(axis=-1)[fragment.valid].all()
    with caplog.at_level(logging.WARNING, "mneme"):
        fragment, _ = collector_of(30, where="attribute").collect()
    assert (fragment.actions != (0, 2)).any(axis=-1)[fragment.valid].any()


@pytest.mark.parametrize("fault", ["step", "reset"])
def test_leaving_the_program_is_a_failure(mode: AutoresetMode, fault: str) -> None:
    collector = collector_of(3)
    collector.env.unwrapped.fault = fault  # type: ignore[attr-defined]
    sentence = f"^the environment mneme-test/Boards-v0 failed .*{fault}.* of worker 0: SystemExit: gone; mend it"
    with pytest.raises(EnvironmentFailure, match=sentence):
        collector.collect() if fault == "step" else Collector(collector.env, collector.policy, 3, 1, seed=0)
    if fault == "reset":
        with pytest.raises(EnvironmentFailure, match="^the environment cannot be reset: SystemExit: gone$"):
            collector_of(3, fault=fault)
