"""The bias of a cut gradient: identities, and a reach that ends where the gradient is cut."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mneme.controllers import CONTROLLERS
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector

LENGTH = 23


def diagnosed(collector: Collector, **settings: Any) -> tuple[Any, np.ndarray]:
    learner = Learner(collector.policy, LearnerSettings(**settings), seed=0, total_timesteps=100)
    fidelity, reach = learner.diagnose([collector.collect()[0].to_arrow()])
    return fidelity, reach.numpy()


@pytest.mark.parametrize("kind", list(CONTROLLERS))
def test_full_is_itself(counting_collector: Callable[..., Collector], kind: str) -> None:
    fidelity, _ = diagnosed(counting_collector(kind=kind), mode="full")
    assert list(fidelity) == pytest.approx([1.0] * 4, abs=1e-5)


def test_what_has_no_memory_loses_nothing(counting_collector: Callable[..., Collector]) -> None:
    fidelity, _ = diagnosed(counting_collector(kind="mlp"), mode="cached")
    assert list(fidelity) == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize("source", ["fresh", "stored"])
def test_a_cut_gradient_is_another_one_and_reaches_to_the_cut(
    counting_collector: Callable[..., Collector], source: str
) -> None:
    K = 4
    settings = {"mode": "truncated", "bptt_length": K, "carry_source": source}
    collector = counting_collector(LearnerSettings(**settings))
    fidelity, reach = diagnosed(collector, **settings)
    assert fidelity.cosine < 0.9999
    assert np.flatnonzero(np.nan_to_num(reach) > 0).max() == K - 2  # the carry at the cut has none
    _, whole = diagnosed(collector, mode="full")
    assert np.flatnonzero(np.nan_to_num(whole) > 0).max() > K


def test_the_reach_is_the_gradient_by_hand(counting_collector: Callable[..., Collector]) -> None:
    """Two steps after a reset: the second's loss has a gradient in the carry between them alone."""
    collector = counting_collector(lanes=1, length=2, kind="gru")  # lane 0: episodes of three steps
    settings = LearnerSettings(mode="full", normalize_advantages="none", vf_coef=0.5, ent_coef=0.0)
    policy, fragment = collector.policy, collector.collect()[0]
    learner = Learner(policy, settings, seed=0, total_timesteps=100)
    _, reach = learner.diagnose([fragment.to_arrow()])
    x = {name: torch.tensor(part[:, :2]).transpose(0, 1) for name, part in fragment.observations.items()}
    reset = torch.tensor(fragment.resets[:, :2]).t()
    between = {
        name: value.detach().requires_grad_()
        for name, value in policy.scan(
            {n: v[:1] for n, v in x.items()}, reset[:1], policy.initial_carry(1)
        ).carry.items()
    }
    out = policy.scan({n: v[1:] for n, v in x.items()}, reset[1:], between)
    bootstrap = float(fragment.rewards[0, 1] + 0.99 * fragment.values[0, 2]) - float(fragment.values[0, 1])
    action = torch.tensor(fragment.actions[:, 1:2]).transpose(0, 1)
    log_prob = policy.action_distribution.log_prob(out.parameters_TBA, action)
    ratio = (log_prob - torch.tensor(fragment.log_probs[:, 1:2])).exp()
    target = float(fragment.values[0, 1]) + bootstrap
    loss = -(ratio * bootstrap).sum() + 0.5 * 0.5 * (out.value_TB - target).square().sum()
    (gradient,) = torch.autograd.grad(loss, list(between.values()))
    assert reach[0].item() == pytest.approx(gradient.norm().item(), rel=1e-4)
    assert torch.isnan(reach[1])  # the carry before the first step is replaced at its reset


def test_nothing_is_changed(counting_collector: Callable[..., Collector]) -> None:
    collector = counting_collector()
    settings = LearnerSettings(mode="cached", normalize_rewards=True)
    learner = Learner(collector.policy, settings, seed=0, total_timesteps=100)
    before = learner.state()
    learner.diagnose([collector.collect()[0].to_arrow()])
    after = learner.state()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_an_update_measures_it_as_often_as_asked_and_learns_the_same(
    counting_collector: Callable[..., Collector],
) -> None:
    settings = LearnerSettings(mode="cached", num_minibatches=2, fidelity_every=2)
    collector = counting_collector(LearnerSettings(mode="cached"))
    fragments = [collector.collect(version)[0].to_arrow() for version in range(3)]
    learners = [
        Learner(deepcopy(collector.policy), s, seed=0, total_timesteps=10_000)
        for s in (settings, replace(settings, fidelity_every=None))
    ]
    seen = [[learner.update([fragment]).metrics for fragment in fragments] for learner in learners]
    assert [("fidelity/cosine" in metrics) for metrics in seen[0]] == [True, False, True]
    assert not any("fidelity/cosine" in metrics for metrics in seen[1])
    assert 0 < seen[0][0]["fidelity/core_cosine"] < 1
    states = [learner.state() for learner in learners]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[1])
