"""The collector on environments that are not ours: both conventions of autoreset, failures, masks, all spaces."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.envs import EnvironmentFailure
from mneme.envs.counting import CountingEnv
from mneme.envs.guard import Guard
from mneme.rollout_workers import Collector, Fragment, SpaceSettings, policy_spec
from tests.environments import Everything

SMALL = PolicySettings(controller=ControllerSettings(hidden_size=8))


def collector_of(env: Any, length: int, spaces: SpaceSettings | None = None, **options: Any) -> Collector:
    spaces = spaces or SpaceSettings()
    policy = build_policy(policy_spec(env, spaces), SMALL, 5, seed=0)
    return Collector(env, policy, length, 1, seed=0, spaces=spaces, **options)


def counting(mode: AutoresetMode, lanes: int = 4) -> SyncVectorEnv:
    makers = [lambda lane=lane: CountingEnv(first_lane=lane) for lane in range(lanes)]
    return SyncVectorEnv(makers, autoreset_mode=mode, observation_mode="different")


def valid_rows(fragment: Fragment, lane: int) -> list[tuple[Any, ...]]:
    """What must not depend on the convention of autoreset, step by step."""
    columns = (
        fragment.observations["observation"][lane, :-1].tolist(),
        fragment.rewards[lane].tolist(),
        fragment.terminated[lane].tolist(),
        fragment.truncated[lane].tolist(),
        fragment.resets[lane, :-1].tolist(),
    )
    rows = list(zip(*columns, strict=True))
    return [row for row, valid in zip(rows, fragment.valid[lane], strict=True) if valid]


def test_next_step_autoreset_gives_the_same_steps_and_marks_its_filler() -> None:
    same = collector_of(counting(AutoresetMode.SAME_STEP), 40)
    nexts = collector_of(counting(AutoresetMode.NEXT_STEP), 40)
    (a, same_stats), (b, next_stats) = same.collect(), nexts.collect()
    for fragment in (a, b):
        fragment.validate()
    assert a.valid.all()
    for lane, period in enumerate((3, 4, 5, 6)):
        rows = valid_rows(b, lane)
        assert rows == valid_rows(a, lane)[: len(rows)]
        assert np.flatnonzero(~b.valid[lane]).tolist() == list(range(period, 40, period + 1))
    assert b.steps == int(b.valid.sum()) < a.steps == 160
    assert not b.rewards[~b.valid].any()
    count = len(next_stats.returns)
    assert sorted(same_stats.lengths)[:3] == sorted(next_stats.lengths)[:3] == [3, 3, 3]
    assert count < len(same_stats.returns)
    assert set(zip(next_stats.returns, next_stats.lengths, strict=True)) == {(3, 3), (6, 4), (10, 5), (15, 6)}


def test_a_truncation_is_worth_its_true_final_observation_under_either_convention() -> None:
    """With weights that act alike, the bootstrapped values agree, carry included."""
    env = counting(AutoresetMode.NEXT_STEP)
    b, _ = collector_of(env, 40).collect()
    policy = build_policy(policy_spec(env), SMALL, 5, seed=0)
    found = 0
    for lane, t in zip(*np.nonzero(b.truncated), strict=True):
        start = int(np.flatnonzero(b.resets[lane, : t + 1])[-1])
        observations = torch.from_numpy(b.observations["observation"][lane, start : t + 2].copy())[:, None]
        resets = torch.zeros(len(observations), 1, dtype=torch.bool)
        with torch.no_grad():
            value = policy.scan({"observation": observations}, resets, policy.initial_carry(1)).value_TB[-1, 0]
        assert float(b.final_values[lane, t]) == pytest.approx(float(value), abs=1e-6)
        found += 1
    assert found > 5


def test_filler_is_still_filler_in_the_next_fragment() -> None:
    collector = collector_of(counting(AutoresetMode.NEXT_STEP, lanes=1), 3)  # lane 0: three steps, then filler
    (a, _), (b, _) = collector.collect(), collector.collect()
    assert a.valid.tolist() == [[True, True, True]]
    assert b.valid.tolist() == [[False, True, True]]
    assert b.resets.tolist() == [[True, True, False, False]]


class Both(CountingEnv):
    """Ends every episode in both ways at once, as a time limit on the last step does."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        over = terminated or truncated
        return observation, reward, over, over, info


def test_an_episode_that_ends_in_both_ways_is_worth_nothing_after_its_end() -> None:
    env = SyncVectorEnv([lambda: Both(shortest=3, spread=1)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    fragment, stats = collector_of(env, 9).collect()
    fragment.validate()
    assert np.flatnonzero(fragment.terminated[0]).tolist() == [2, 5, 8]
    assert not fragment.final_values.any()
    assert len(stats.lengths) == 6


class Breaking(CountingEnv):
    """Raises at every third step of its life."""

    life = 0

    def step(self, action: Any) -> Any:
        self.life += 1
        if self.life % 4 == 0:
            raise RuntimeError("the simulator fell over")
        return super().step(action)


def test_a_failure_cuts_its_lanes_episode_and_is_reported() -> None:
    makers = [lambda: Guard(Breaking(shortest=3, spread=1), 5), lambda: Guard(CountingEnv(shortest=3, spread=1), 5)]
    env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    fragment, stats = collector_of(env, 12).collect()
    fragment.validate()
    # Three good steps end an episode; the fourth call fails at the first step of the next one.
    assert fragment.valid[0].tolist() == [True, True, True, False] * 3
    assert fragment.valid[1].all()
    assert fragment.resets[0].tolist() == [True, False, False, True] * 3 + [True]
    assert not (fragment.terminated | fragment.truncated)[~fragment.valid].any()
    assert len(stats.failures) == 3
    assert "RuntimeError: the simulator fell over" in stats.failures[0]
    assert stats.lengths[stats.lanes == 0].tolist() == [3, 3, 3]
    assert stats.returns[stats.lanes == 0].tolist() == [3.0, 3.0, 3.0]


class Dying(CountingEnv):
    """Fails at its third step, with rewards of its episode already paid, and at every second reset."""

    steps = resets = 0

    def reset(self, **options: Any) -> Any:
        self.resets += 1
        if self.resets % 2 == 0:
            raise RuntimeError("no simulator answers")
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("the simulator fell over")
        return super().step(action)


def test_what_a_failed_episode_was_paid_is_forgotten_and_failing_resets_are_told() -> None:
    env = SyncVectorEnv([lambda: Guard(Dying(shortest=4, spread=1), 9)], autoreset_mode=AutoresetMode.SAME_STEP)
    _, stats = collector_of(env, 8).collect()
    assert stats.returns.tolist() == [6.0]  # 0 + 1 + 2 + 3, and nothing of the two steps before
    assert stats.lengths.tolist() == [4]
    resets = [sentence for sentence in stats.failures if "failed in reset: RuntimeError: no simulator" in sentence]
    assert len(stats.failures) == 1 + len(resets)
    assert resets


def test_seeds_for_other_peoples_environments_are_below_two_to_the_31() -> None:
    seen: list[int] = []

    class Seeded(CountingEnv):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            seen.append(0 if seed is None else seed)
            return super().reset(seed=seed, options=options)

    collector_of(SyncVectorEnv([Seeded] * 8, autoreset_mode=AutoresetMode.SAME_STEP), 4)
    assert len(set(seen[-8:])) == 8
    assert max(seen) < 2**31


def test_failures_without_an_episode_between_them_end_the_run() -> None:
    env = SyncVectorEnv([lambda: Guard(Breaking(shortest=9, spread=1), 3)], autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvironmentFailure, match=r"failure 3 in a row(.|\n)*Traceback(.|\n)*fell over"):
        collector_of(env, 40).collect()


@pytest.mark.parametrize("masked", [False, True])
def test_every_kind_of_space_passes_through(masked: bool) -> None:
    """The environment itself refuses actions that do not fit or are masked; the guard reports what it refuses."""
    makers = [lambda: Guard(Everything(masked=masked), 1)] * 3
    env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    settings = SpaceSettings(previous_action=True, previous_reward=True)
    fragment, stats = collector_of(env, 33, settings).collect()
    fragment.validate()
    assert not stats.failures
    assert fragment.valid.all()
    steps = np.arange(34) % 5
    for lane in range(3):
        np.testing.assert_array_equal(fragment.observations["image"][lane, :, 0, 0, 0], steps)
        np.testing.assert_array_equal(fragment.observations["nested.0"][lane, :, 0], steps)
        np.testing.assert_array_equal(fragment.rewards[lane], steps[:-1])
        expected = np.where(steps == 0, 0, steps - 1)
        np.testing.assert_array_equal(fragment.observations["previous_reward"][lane, :, 0], expected)
        previous = fragment.observations["previous_action"][lane]
        inside = steps[1:] != 0
        np.testing.assert_array_equal(previous[1:][inside], fragment.actions[lane][inside])
    assert ("action_mask" in fragment.observations) == masked
    assert fragment.truncated.any() and fragment.terminated.any()


def test_an_environment_that_takes_one_seed_for_all_lanes_gets_one() -> None:
    env = gym.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    a, b = (collector_of(env, 30).collect()[0] for _ in range(2))
    np.testing.assert_array_equal(a.observations["observation"], b.observations["observation"])
    assert not a.valid.all()  # its own convention is next-step


def test_success_may_be_a_return_that_the_user_names() -> None:
    stats = collector_of(counting(AutoresetMode.SAME_STEP), 40, success_return=10.0).collect()[1]
    np.testing.assert_array_equal(stats.successes, stats.returns >= 10.0)
    assert 0 < stats.successes.mean() < 1


class OwnState(SyncVectorEnv):
    """Calls something else its state, as simulators do."""

    def get_state(self, lane: int | None = None) -> np.ndarray:
        return np.zeros(3)


def test_a_get_state_of_an_environments_own_is_not_taken_for_a_state_to_resume_from() -> None:
    env = OwnState([lambda: CountingEnv()] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    assert collector_of(env, 4).state() is None


class Telling(SyncVectorEnv):
    """Has words of its own in `final_info`."""

    def step(self, actions: Any) -> Any:
        *step, info = super().step(actions)
        done = step[2] | step[3]
        final = {"failure": np.array([True] * 2), "_failure": done, "reset_failure": np.ones(2), "_reset_failure": done}
        return *step, info | ({"final_info": final, **final} if done.any() else {})


def test_words_of_an_environments_own_are_not_taken_for_failures() -> None:
    env = Telling([lambda: CountingEnv(shortest=3, spread=1)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    fragment, stats = collector_of(env, 8).collect()
    assert fragment.valid.all()
    assert not stats.failures
