"""The value loss over bins: against a loop, at every scale of rewards, with padding, and in whole updates."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mneme.controllers import VALUE_BINS, ControllerSettings, Policy, PolicySettings, build_policy
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.learner.gradients import shard_gradients
from mneme.learner.losses import two_hot_loss
from mneme.learner.returns import Returns
from mneme.rollout_workers import Collector, policy_spec
from tests.controllers.two_hot_reference import plain_bins, plain_two_hot

TWO_HOT = LearnerSettings(value_loss="two_hot", num_threads=1)


def plain_loss(logits: list[float], target: float) -> float:
    """-sum twohot(target) log softmax(logits), a bin at a time."""
    total = math.log(sum(math.exp(x) for x in logits))
    encoding = plain_two_hot(target, plain_bins(len(logits)))
    return sum(p * (total - x) for p, x in zip(encoding, logits, strict=True))


def collector(id: str = "mneme/Counting-v0", length: int = 23, lanes: int = 6, **kwargs: Any) -> Collector:
    env = make_vector_env(EnvSettings(id=id, kwargs=kwargs), lanes)
    spec = replace(policy_spec(env), value_bins=VALUE_BINS)
    settings = PolicySettings(controller=ControllerSettings(hidden_size=16))
    policy = build_policy(spec, settings, length, seed=0)
    return Collector(env, policy, length, TWO_HOT.plan(length).carry_stride, seed=0)


def test_the_loss_is_the_cross_entropy_and_so_is_its_gradient() -> None:
    targets = torch.tensor([0.0, 1.0, -3.7, 1e4, -2e8, 7e8, -7e8, 1e-3], dtype=torch.float64)
    logits = torch.randn(len(targets), 41, dtype=torch.float64, requires_grad=True)
    loss = two_hot_loss(logits, targets)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    for i, target in enumerate(targets.tolist()):
        row = logits[i].tolist()
        assert loss[i].item() == pytest.approx(plain_loss(row, target), rel=1e-9)
        for j in range(41):
            up, down = ([x + h * (k == j) for k, x in enumerate(row)] for h in (1e-6, -1e-6))
            slope = (plain_loss(up, target) - plain_loss(down, target)) / 2e-6
            assert gradient[i, j].item() == pytest.approx(slope, abs=1e-7)
        expected = logits[i].detach().softmax(-1) - torch.tensor(plain_two_hot(target, plain_bins(41)))
        torch.testing.assert_close(gradient[i], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (4, 5)])
def test_single_precision_loses_little(shape: tuple[int, ...]) -> None:
    targets, logits = 300 * torch.randn(shape), 3 * torch.randn(*shape, VALUE_BINS)
    found, expected = two_hot_loss(logits, targets), two_hot_loss(logits.double(), targets.double())
    assert found.shape == shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def shard(policy: Policy, batch: SequenceBatch, settings: LearnerSettings, scale: float = 1.0) -> tuple[float, Tensor]:
    """The mean value loss, and the gradient of the value head's weights from it alone."""
    B, T = batch.rewards.shape
    targets = scale * torch.linspace(-1, 3, B * T).view(B, T)
    returns = Returns(torch.zeros(B, T), targets, torch.ones(B, T))
    count = int(batch.valid.sum())
    result = shard_gradients(policy, replace(settings, ent_coef=0.0), batch, returns, torch.arange(B), count)
    names = [name for name, _ in policy.named_parameters()]
    gradient = result.gradients[names.index("value_head.weight")]
    assert gradient is not None
    return result.sums["value_loss"] / count, gradient


def test_rewards_times_ten_thousand_leave_the_gradient_in_its_order(
    counting_collector: Callable[..., Collector],
) -> None:
    binned, scalar = collector(), counting_collector()
    growth = {}
    for of, settings in ((binned, TWO_HOT), (scalar, LearnerSettings(num_threads=1))):
        batch = SequenceBatch.from_fragments([of.collect()[0]], torch.device("cpu"))
        (small, before), (large, after) = (shard(of.policy, batch, settings, scale) for scale in (1.0, 1e4))
        growth[settings.value_loss] = float(after.norm() / before.norm())
        assert math.isfinite(small) and math.isfinite(large) and after.isfinite().all()
    assert 0.3 < growth["two_hot"] < 3 and growth["mse"] > 1000


@pytest.mark.parametrize("mode", ["cached", "truncated", "full"])
def test_padding_changes_nothing(mode: Any) -> None:
    of, settings = collector(), replace(TWO_HOT, mode=mode, bptt_length=6)
    batch = SequenceBatch.from_fragments([of.collect()[0]], torch.device("cpu"))
    with torch.no_grad():
        for parameter in of.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    valid = batch.valid.clone()
    valid[1, 15:] = False
    B, T = batch.rewards.shape
    targets = 5 * torch.randn(B, T)
    found = []
    for odd in (0.0, 1e7):
        returns = Returns(torch.zeros(B, T), torch.where(valid, targets, odd), torch.ones(B, T))
        part = replace(batch, valid=valid)
        found.append(shard_gradients(of.policy, settings, part, returns, torch.arange(B), int(valid.sum())))
    assert found[0].sums == found[1].sums
    for a, b in zip(found[0].gradients, found[1].gradients, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("anchor", ["never", "always"])
def test_the_first_ratio_is_one_and_all_is_finite(anchor: Any, asynchronous: bool) -> None:
    if asynchronous and anchor == "never":
        return
    of = collector()
    settings = replace(TWO_HOT, anchor=anchor, num_epochs=2, num_minibatches=2)
    learner = Learner(deepcopy(of.policy), settings, seed=0, total_timesteps=1000, asynchronous=asynchronous)
    for version in range(3):
        fragment, _ = of.collect(version)
        report = learner.update([replace(fragment, rewards=1e4 * fragment.rewards).to_arrow()])
        assert report.metrics["ratio_error"] < 1e-5 and not report.refused
        assert all(np.isfinite(report.metrics[name]) for name in ("policy_loss", "value_loss", "value_mean", "kl"))
        assert version or report.metrics["value_mean"] == 0
        learner.weights().load_into(of.policy)


def test_the_shares_of_threads_and_chunks_add_up() -> None:
    of = collector()
    fragment, _ = of.collect()
    weights = []
    for changes in ({}, {"num_threads": 2}, {"activation_checkpointing": True}, {"gradient_accumulation": 2}):
        settings = replace(TWO_HOT, num_epochs=1, num_minibatches=1, **changes)
        learner = Learner(deepcopy(of.policy), settings, seed=0, total_timesteps=1000)
        learner.update([fragment.to_arrow()])
        weights.append(learner.weights().arrays)
    for other in weights[1:]:
        for name, array in weights[0].items():
            np.testing.assert_allclose(other[name], array, atol=1e-4, err_msg=name)


def test_it_learns_a_delayed_cue_that_pays_a_thousand() -> None:
    of = collector("mneme/DelayedCue-v0", length=6, lanes=64, cues=2, horizon=5)
    learner = Learner(deepcopy(of.policy), replace(TWO_HOT, gae_lambda=0.0), seed=0, total_timesteps=100_000)
    explained, success = [], []
    for version in range(30):
        fragment, stats = of.collect(version)
        report = learner.update([replace(fragment, rewards=1000 * fragment.rewards).to_arrow()])
        explained.append(report.metrics["explained_variance"])
        success.append(float(stats.successes.mean()))
        learner.weights().load_into(of.policy)
    assert explained[0] == pytest.approx(0, abs=1e-6)
    assert np.mean(explained[5:15]) > 0.25  # later there is little left to be explained
    assert np.mean(success[:3]) < 0.6 and np.mean(success[-5:]) > 0.9


def test_a_head_that_does_not_fit_the_loss_is_refused(counting_collector: Callable[..., Collector]) -> None:
    for policy, settings, sentence in (
        (counting_collector().policy, TWO_HOT, "'two_hot', .* has value_bins=255, and .* value_bins=1; build it"),
        (collector().policy, LearnerSettings(), "'mse', .* has value_bins=1, and .* value_bins=255; build it"),
    ):
        with pytest.raises(ValueError, match=f"learner.value_loss is {sentence}"):
            Learner(policy, settings, seed=0, total_timesteps=1)
