"""The base of all tasks: Gymnasium's contract, seeding, same-step autoreset, exact save and restore."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from mneme.envs import Counting, DelayedCue
from mneme.envs.delayed_cue import DelayedCueEnv


def test_a_new_episode_without_a_seed_is_the_next_one() -> None:
    by_reset, by_step = DelayedCue(64, cues=8, horizon=1), DelayedCue(64, cues=8, horizon=1)
    first = by_reset.reset(seed=0)[0]
    by_step.reset(seed=0)
    by_step.step(np.zeros(64, dtype=np.int64))
    second = by_step.step(np.zeros(64, dtype=np.int64))[0]
    np.testing.assert_array_equal(by_reset.reset()[0], second)
    assert (first != second).any()


def test_environments_without_a_seed_differ() -> None:
    first, second = (DelayedCue(64, cues=8).reset()[0] for _ in range(2))
    assert (first != second).any()


@pytest.mark.parametrize("seed", [2**63, 2**64 + 5, 2**100])
def test_large_seeds_work(seed: int) -> None:
    np.testing.assert_array_equal(
        DelayedCue(4).reset(seed=seed)[0], DelayedCue(4).reset(seed=[seed + i for i in range(4)])[0]
    )


def test_partial_reset_leaves_other_lanes_alone() -> None:
    env, untouched = (DelayedCue(4, cues=8, horizon=6) for _ in range(2))
    for e in (env, untouched):
        e.reset(seed=0)
        for _ in range(3):
            e.step(np.zeros(4, dtype=np.int64))
    mask = np.array([True, False, False, True])
    options = {"reset_mask": mask}
    observation, info = env.reset(seed=[40, 41, 42, None], options=options)
    assert info == {}
    assert options["reset_mask"] is mask and mask.tolist() == [True, False, False, True]
    np.testing.assert_array_equal(observation[0], DelayedCue(1, cues=8, horizon=6).reset(seed=40)[0][0])
    for _ in range(8):
        ours, theirs = (e.step(np.zeros(4, dtype=np.int64)) for e in (env, untouched))
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(a[1:3], b[1:3])
    assert env.get_state()["step"][0] != untouched.get_state()["step"][0]
    np.testing.assert_array_equal(env.get_state()["episode"], [1, 1, 1, 2])


def test_final_observation_is_of_the_old_episode_and_the_returned_one_of_the_new() -> None:
    env = Counting(2, shortest=2, spread=2)
    env.reset(seed=0)
    env.step(np.zeros(2, dtype=np.int64))
    observation, _, terminated, _, info = env.step(np.zeros(2, dtype=np.int64))
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    np.testing.assert_array_equal(terminated, [True, False])
    np.testing.assert_array_equal(observation, [[0, 0, 1], [2, 1, 0]])
    np.testing.assert_array_equal(info["final_obs"][0], [2, 0, 0])
    assert info["final_obs"][1] is None
    for mask in ("_final_obs", "_final_info"):
        np.testing.assert_array_equal(info[mask], [True, False])


def test_saved_state_is_a_copy() -> None:
    env = Counting(2)
    env.reset(seed=0)
    state = env.get_state()
    kept = {name: array.copy() for name, array in state.items()}
    env.set_state(state)
    env.step(np.zeros(2, dtype=np.int64))
    assert data_equivalence(state, kept, exact=True)
    for array in state.values():
        array[:] = 0
    env.set_state(kept)
    for array in env.get_state().values():
        array[:] = 0
    assert data_equivalence(env.get_state(), kept, exact=True)


def test_gymnasiums_vector_wrappers_work() -> None:
    env = RecordEpisodeStatistics(Counting(5))
    env.reset(seed=0)
    for _ in range(3):
        *_, info = env.step(np.zeros(5, dtype=np.int64))
    np.testing.assert_array_equal(info["_episode"], [True, False, False, False, False])
    assert (info["episode"]["r"][0], info["episode"]["l"][0]) == (3.0, 3)
    for _ in range(18):
        env.step(np.zeros(5, dtype=np.int64))
    assert env.episode_count == 7 + 5 + 4 + 3 + 3
    listed = DictInfoToList(Counting(2))
    listed.reset(seed=0)
    for _ in range(3):
        *_, info = listed.step(np.zeros(2, dtype=np.int64))
    np.testing.assert_array_equal(info[0]["final_obs"], [3, 0, 0])
    assert info[1] == {}


def test_single_form_refuses_to_go_on_after_the_end() -> None:
    env = DelayedCueEnv(horizon=1)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(np.int64(0))
    env.reset(seed=0)
    env.step(np.int64(0))
    *_, terminated, truncated, _ = env.step(np.int64(0))
    assert terminated and not truncated
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(np.int64(0))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 4]), "an action is 4; actions run from 0 to 3"),
        (np.array([-1, 0]), "an action is -1; actions run from 0 to 3"),
        (np.zeros((2, 1), dtype=np.int64), "actions have shape .* pass one integer a lane"),
        (np.zeros(2), "type float64; pass one integer a lane"),
    ],
)
def test_bad_actions_are_refused_and_change_nothing(actions: np.ndarray, message: str) -> None:
    env = DelayedCue(2)
    env.reset(seed=0)
    before = env.get_state()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert data_equivalence(env.get_state(), before, exact=True)


@pytest.mark.parametrize("mask", [np.array([1, 0]), np.array([True]), np.array([False, False]), [True, False]])
def test_bad_masks_are_refused(mask: object) -> None:
    env = DelayedCue(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"options\['reset_mask'\] is .* must be a boolean array of shape \(2,\)"):
        env.reset(options={"reset_mask": mask})


def test_use_before_the_first_reset_is_refused() -> None:
    env = DelayedCue(2)
    for use in (
        env.get_state,
        lambda: env.step(np.zeros(2, dtype=np.int64)),
        lambda: env.reset(options={"reset_mask": np.array([True, False])}),
    ):
        with pytest.raises(gym.error.ResetNeeded, match="DelayedCue was never reset; call reset"):
            use()


def test_wrong_seeds_and_states_are_refused() -> None:
    env = DelayedCue(2)
    with pytest.raises(ValueError, match="3 seeds were given; pass one for each of the 2 lanes"):
        env.reset(seed=[1, 2, 3])
    env.reset(seed=0)
    state = env.get_state()
    with pytest.raises(ValueError, match=r"'key' .* 3 lanes is of shape \(2,\); restore a state"):
        DelayedCue(3).set_state(state)
    with pytest.raises(ValueError, match="'step' in the state of an environment with 2 lanes is missing; restore"):
        env.set_state({"key": state["key"], "episode": state["episode"]})
    with pytest.raises(ValueError, match="num_envs is 0; it must be at least 1"):
        DelayedCue(0)
