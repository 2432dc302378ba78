"""The KL of an update is that between the policy before it and the policy after it."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

from mneme.controllers import Policy
from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.rollout_workers import Collector, Fragment


def exact(before: Policy, after: Policy, fragment: Fragment) -> float:
    """Mean over all valid steps of all sequences."""
    batch = SequenceBatch.from_fragments([fragment], torch.device("cpu"))
    observations = {name: x[:, :-1].transpose(0, 1) for name, x in batch.observations.items()}
    carry = {name: c[:, 0] for name, c in batch.carries.items()}
    with torch.no_grad():
        p, q = (policy.scan(observations, batch.resets[:, :-1].t(), carry).parameters_TBA for policy in (before, after))
    return float(before.action_distribution.kl(p, q)[batch.valid.t()].mean())


@pytest.mark.parametrize(("epochs", "shards"), [(4, 1), (16, 3)])
def test_kl_is_that_of_the_whole_update(counting_collector: Callable[..., Collector], epochs: int, shards: int) -> None:
    settings = LearnerSettings(num_epochs=epochs, num_minibatches=2, num_threads=shards, learning_rate=1e-3)
    collector = counting_collector(settings, lanes=64, kind="mlp")
    fragment, _ = collector.collect()
    learner = Learner(deepcopy(collector.policy), settings, seed=0, total_timesteps=1000)
    metrics = learner.update([fragment.to_arrow()]).metrics
    assert metrics["kl"] == pytest.approx(exact(collector.policy, learner.policy, fragment), rel=0.2)
    assert metrics["kl_minibatches"] < 0.8 * metrics["kl"]


def test_in_asynchronous_service_it_is_measured_from_the_recomputed_policy(
    counting_collector: Callable[..., Collector],
) -> None:
    settings = LearnerSettings(num_epochs=1, num_minibatches=1, learning_rate=1e-2)
    collector = counting_collector(settings)
    fragment = collector.collect()[0].to_arrow()
    learner = Learner(deepcopy(collector.policy), settings, seed=0, total_timesteps=1000, asynchronous=True)
    assert learner.update([fragment]).metrics["kl"] > 1e-4
    learner._optimizer.learning_rate = 0.0
    learner._optimizer.anneal = lambda *_: None  # type: ignore[method-assign]
    assert learner.update([fragment]).metrics["kl"] < 1e-9  # the policy that acted is an update behind
