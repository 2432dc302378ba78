"""The reward scale against a plain loop over episodes, across fragments, and through a saved state."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mneme.envs.counting import CountingEnv
from mneme.learner.batch import SequenceBatch
from mneme.learner.reward_scale import RewardScale
from mneme.rollout_workers import Collector

GAMMA = 0.9


def batches(collector: Collector, count: int) -> list[SequenceBatch]:
    return [SequenceBatch.from_fragments([collector.collect(v)[0]], torch.device("cpu")) for v in range(count)]


def reference_divisor(lanes: int, steps: int) -> float:
    """The deviation of the discounted returns at every step of all lanes' episodes."""
    returns = []
    for lane in range(lanes):
        env, g = CountingEnv(first_lane=lane), 0.0
        env.reset()
        for _ in range(steps):
            _, reward, terminated, truncated, _ = env.step(np.int64(0))
            g = GAMMA * g + float(reward)
            returns.append(g)
            if terminated or truncated:
                g = 0.0
                env.reset()
    return float(np.sqrt(np.var(returns) + 1e-8))


def test_the_divisor_is_the_deviation_of_all_discounted_returns(counting_collector: Callable[..., Collector]) -> None:
    scale = RewardScale(GAMMA)
    for batch in batches(counting_collector(length=7), 4):
        scaled = scale.scaled(batch)
        torch.testing.assert_close(scaled, batch.rewards / scale.divisor)
    assert scale.divisor == pytest.approx(reference_divisor(6, 28), rel=1e-12)


def test_a_restored_scale_goes_on_as_if_never_interrupted(counting_collector: Callable[..., Collector]) -> None:
    parts = batches(counting_collector(length=7), 4)
    straight, first, second = RewardScale(GAMMA), RewardScale(GAMMA), RewardScale(GAMMA)
    for batch in parts[:2]:
        straight.scaled(batch)
        first.scaled(batch)
    second.set_state(first.state())
    for batch in parts[2:]:
        assert torch.equal(straight.scaled(batch), second.scaled(batch))
    for name, array in straight.state().items():
        np.testing.assert_array_equal(array, second.state()[name])


def test_a_missing_fragment_starts_its_lanes_from_zero(counting_collector: Callable[..., Collector]) -> None:
    first, _, third = batches(counting_collector(length=7), 3)
    gap, alone = RewardScale(GAMMA), RewardScale(GAMMA)
    gap.scaled(first)
    np.testing.assert_array_equal(gap._returns(third, lambda x: x), alone._returns(third, lambda x: x))


def test_two_fragments_of_a_lane_in_one_batch_are_two_in_turn(counting_collector: Callable[..., Collector]) -> None:
    """Asynchronous service may bring them together, and in any order."""
    collector = counting_collector(length=7)
    fragments = [collector.collect(version)[0] for version in range(2)]
    cpu = torch.device("cpu")
    apart, together = RewardScale(GAMMA), RewardScale(GAMMA)
    for fragment in fragments:
        apart.scaled(SequenceBatch.from_fragments([fragment], cpu))
    together.scaled(SequenceBatch.from_fragments(fragments[::-1], cpu))
    assert together.divisor == pytest.approx(apart.divisor, rel=1e-12)
    for name in ("running", "expected"):
        np.testing.assert_array_equal(together.state()[name], apart.state()[name])
