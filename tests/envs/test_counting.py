"""Counting: every number says where it belongs."""

import numpy as np

from mneme.envs import Counting


def _trace(env: Counting, steps: int) -> list[tuple[np.ndarray, ...]]:
    """(observation acted on, reward, terminated, truncated) of every step."""
    observation, _ = env.reset(seed=0)
    rows = []
    for _ in range(steps):
        after, reward, terminated, truncated, _ = env.step(np.zeros(env.num_envs, dtype=np.int64))
        rows.append((observation, reward, terminated, truncated))
        observation = after
    return rows


def test_each_number_against_a_plain_count_per_lane() -> None:
    rows = _trace(Counting(7), 40)
    for lane in range(7):
        length, step, episode = 3 + lane % 5, 0, 0
        for observation, reward, terminated, truncated in rows:
            np.testing.assert_array_equal(observation[lane], [step, lane, episode])
            assert reward[lane] == step
            last = step == length - 1
            assert terminated[lane] == (last and episode % 2 == 0)
            assert truncated[lane] == (last and episode % 2 == 1)
            step, episode = (0, episode + 1) if last else (step + 1, episode)


def test_final_observation_holds_the_length() -> None:
    env = Counting(3, shortest=2, spread=2)
    env.reset(seed=0)
    for step in range(1, 7):
        *_, info = env.step(np.zeros(3, dtype=np.int64))
        for lane, length in enumerate((2, 3, 2)):
            if step % length:
                assert not info or (not info["_final_obs"][lane] and info["final_obs"][lane] is None)
            else:
                assert info["_final_obs"][lane]
                np.testing.assert_array_equal(info["final_obs"][lane], [length, lane, step // length - 1])


def test_first_lane_moves_the_numbering() -> None:
    np.testing.assert_array_equal(Counting(3, first_lane=4).reset(seed=0)[0][:, 1], [4, 5, 6])


def test_facts() -> None:
    mixed, alike = Counting(5).facts, Counting(4, shortest=6, spread=1).facts
    assert (mixed.episode_length, alike.episode_length) == (None, 6)
    assert mixed.optimal_return == mixed.chance_return == mixed.memoryless_return == (3 + 6 + 10 + 15 + 21) / 5
    assert mixed.success_return == 3
    assert alike.optimal_return == alike.success_return == 15
    assert alike.memory_horizon == 0
