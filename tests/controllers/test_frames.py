"""Stacked observations are those of Gymnasium's own wrapper, however the steps are cut into scans."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from torch import Generator, Tensor

from mneme.controllers import Categorical, ControllerSettings, PolicySettings, PolicySpec, Vector, build_policy
from mneme.controllers.frames import FrameStack
from mneme.controllers.observations import Observation

B, T, N = 3, 40, 4


class Random(gym.Env[np.ndarray, int]):
    """Episodes of one to nine steps in which nothing depends on what is done."""

    observation_space, action_space = spaces.Box(-9, 9, (2, 3), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[np.ndarray, dict[str, object]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 10))
        return self._observed(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, object]]:
        self.left -= 1
        return self._observed(), 0.0, self.left == 0, False, {}

    def _observed(self) -> np.ndarray:
        return self.np_random.normal(size=(2, 3)).astype(np.float32)


def played(env: gym.Env[np.ndarray, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations of T steps, each that of the episode which the action is chosen in, and where episodes begin."""
    observation, ended = env.reset(seed=seed)[0], True
    seen, begun = [], []
    for _ in range(T):
        seen.append(observation)
        begun.append(ended)
        observation, _, ended, _, _ = env.step(0)
        if ended:
            observation, _ = env.reset()
    return np.stack(seen), np.array(begun)


@pytest.fixture(scope="module")
def lanes() -> tuple[Observation, Tensor, Tensor]:
    """The parts [T, B, ...], where episodes begin [T, B], and what Gymnasium stacks [T, B, N, ...]."""
    plain = [played(Random(), seed) for seed in range(B)]
    wrapped = [played(FrameStackObservation(Random(), N), seed) for seed in range(B)]
    shown, resets, stacked = (
        torch.from_numpy(np.stack([lane[i] for lane in of], 1)) for of, i in ((plain, 0), (plain, 1), (wrapped, 0))
    )
    assert resets.sum() > 3 * B
    return {"x": shown}, resets, stacked


@pytest.mark.parametrize("sizes", [[T], [1] * T, [3, 1, 7, T - 11], [N - 1] * 13 + [1]], ids=str)
def test_it_is_gymnasiums_stack(lanes: tuple[Observation, Tensor, Tensor], sizes: list[int]) -> None:
    parts, resets, expected = lanes
    stack = FrameStack({"x": (2, 3)}, N)
    frames = {name: start.expand(B, *start.shape) for name, start in stack.initial(torch.device("cpu")).items()}
    found = []
    for x, reset in zip(parts["x"].split(sizes), resets.split(sizes), strict=True):
        stacked, frames = stack.stacked({"x": x}, reset, frames)
        found.append(stacked["x"])
        assert {name: held.shape for name, held in frames.items()} == {"frames": (B, 1), "frames.x": (B, N - 1, 2, 3)}
    assert torch.equal(torch.cat(found), expected)


def test_the_initial_carry_is_as_good_as_a_reset(lanes: tuple[Observation, Tensor, Tensor]) -> None:
    parts, resets, expected = lanes
    stack = FrameStack({"x": (2, 3)}, N)
    frames = {name: start.expand(B, *start.shape) for name, start in stack.initial(torch.device("cpu")).items()}
    resets = resets.clone()
    resets[0] = False
    assert torch.equal(stack.stacked(parts, resets, frames)[0]["x"], expected)


def test_a_policy_without_other_memory_sees_so_far_and_no_further() -> None:
    spec = PolicySpec({"x": Vector(2)}, Categorical(3), stack=N)
    policy = build_policy(spec, PolicySettings(controller=ControllerSettings(kind="mlp", hidden_size=8)), 5, seed=0)
    x, reset = torch.randn(T, 1, 2, generator=Generator().manual_seed(0)), torch.zeros(T, 1, dtype=torch.bool)
    values = policy.scan({"x": x}, reset, policy.initial_carry(1)).value_TB
    for back in range(T):
        changed = x.clone()
        changed[T - 1 - back] += 1
        other = policy.scan({"x": changed}, reset, policy.initial_carry(1)).value_TB
        assert torch.equal(other[-1], values[-1]) == (back >= N)


def test_a_carry_without_frames_is_refused() -> None:
    policy = build_policy(PolicySpec({"x": Vector(2)}, Categorical(3), stack=N), PolicySettings(), 5, seed=0)
    x, reset = {"x": torch.zeros(1, B, 2)}, torch.ones(1, B, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"the carry holds \['h'\], and lacks frames of shapes .*pass what initial"):
        policy.scan(x, reset, policy.controller.initial_carry(B))
    short = policy.initial_carry(B) | {"frames.x": torch.zeros(B, N, 2)}
    with pytest.raises(ValueError, match="lacks frames"):
        policy.scan(x, reset, short)
    with pytest.raises(ValueError, match="stack is 0; it must be at least 1"):
        PolicySpec({"x": Vector(2)}, Categorical(3), stack=0)
