"""The order of environments and of a minibatch's sequences changes nothing but rounding."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from mneme.controllers import CONTROLLERS
from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.learner.gradients import shard_gradients
from mneme.learner.returns import Returns, gae
from mneme.rollout_workers import Collector

MODES: list[dict[str, Any]] = [
    {"mode": "cached"},
    {"mode": "truncated", "bptt_length": 5, "carry_source": "stored"},
    {"mode": "full"},
]


@pytest.mark.parametrize("kind", list(CONTROLLERS))
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["mode"])
def test_environments_in_another_order_give_the_same_gradient(
    counting_collector: Callable[..., Collector], kind: str, mode: dict[str, Any]
) -> None:
    settings = LearnerSettings(**mode)
    collector = counting_collector(settings, kind=kind)
    collector.collect()
    batch = SequenceBatch.from_fragments([collector.collect()[0]], torch.device("cpu"))
    permutation = torch.tensor([3, 1, 5, 0, 2, 4])

    def gradients(batch: SequenceBatch) -> list[torch.Tensor | None]:
        ends = (batch.final_values, batch.terminated, batch.truncated, batch.valid)
        returns: Returns = gae(batch.rewards, batch.values, *ends, gamma=0.9, lam=0.8)
        rows = torch.arange(batch.sequences)
        return list(shard_gradients(collector.policy, settings, batch, returns, rows, batch.steps).gradients)

    for own, other in zip(gradients(batch), gradients(batch.rows(permutation)), strict=True):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["mode"])
def test_a_minibatch_in_another_order_gives_the_same_step(
    counting_collector: Callable[..., Collector], mode: dict[str, Any]
) -> None:
    settings = LearnerSettings(**mode, num_epochs=2, num_minibatches=1, num_threads=2)
    collector = counting_collector(settings)
    fragment = collector.collect()[0].to_arrow()
    first, second = (
        Learner(deepcopy(collector.policy), settings, seed=seed, total_timesteps=10_000) for seed in (0, 1)
    )
    before = first.weights().arrays
    first.update([fragment])
    second.update([fragment])
    for name, array in first.weights().arrays.items():
        np.testing.assert_allclose(array, second.weights().arrays[name], rtol=1e-3, atol=1e-5, err_msg=name)
    assert any(not np.array_equal(array, before[name]) for name, array in first.weights().arrays.items())
