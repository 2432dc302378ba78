"""The tasks in torch are those in numpy: the same draws, and the same trajectories to the bit."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.on_device.lane_random import fold_in, lane_integers, lane_noise, words
from benchmarks.on_device.tasks import DeviceCopyMemory, DeviceDelayedCue, DeviceTask
from mneme.envs import CopyMemory, DelayedCue, MemoryVectorEnv, lane_random

CPU = torch.device("cpu")
KEYS = lane_random.lane_keys(2**63 + 12345, np.arange(500))


def test_keys_and_draws_are_numpys_to_the_bit() -> None:
    key_B = words(KEYS, CPU)
    np.testing.assert_array_equal(fold_in(key_B, 7).numpy().view(np.uint64), lane_random.fold_in(KEYS, 7))
    np.testing.assert_array_equal(lane_integers(key_B, 3, 10, 4).numpy(), lane_random.lane_integers(KEYS, 3, 10, 4))
    np.testing.assert_array_equal(lane_noise(key_B, 11, 6, 2).numpy(), lane_random.lane_noise(KEYS, 11, 6, 2))
    assert (key_B < 0).any() and (key_B > 0).any()  # with and without the highest bit


@pytest.mark.parametrize(
    ("of_numpy", "of_torch", "kwargs"),
    [
        (DelayedCue, DeviceDelayedCue, {"cues": 4, "horizon": 9}),
        (DelayedCue, DeviceDelayedCue, {"cues": 3, "horizon": 9, "shortest_horizon": 2}),
        (CopyMemory, DeviceCopyMemory, {"symbols": 5, "length": 3, "delay": 4}),
        (CopyMemory, DeviceCopyMemory, {"symbols": 2, "length": 1, "delay": 0}),
    ],
)
def test_trajectories_are_numpys(
    of_numpy: type[MemoryVectorEnv], of_torch: type[DeviceTask], kwargs: dict[str, Any]
) -> None:
    env, generator, spans = of_numpy(40, **kwargs), np.random.default_rng(0), (13, 13, 13)
    env.reset(seed=5)
    for _ in range(4):  # it begins in the middle of episodes
        env.step(generator.integers(0, 2, 40))
    task, paid = of_torch(env, CPU, **kwargs), 0.0
    for span in spans:
        task.prepare(span)
        for _ in range(span):
            np.testing.assert_array_equal(task.observe().numpy(), env.observation())
            action_B = generator.integers(0, 2, 40)
            reward_B, terminated_B = task.step(torch.from_numpy(action_B))
            _, expected_B, ended_B, _, _ = env.step(action_B)
            np.testing.assert_array_equal(reward_B.numpy(), expected_B.astype(np.float32))
            np.testing.assert_array_equal(terminated_B.numpy(), ended_B)
            paid += float(reward_B.sum())
    assert paid > 0
    assert (task.episode_B > 1).all()
