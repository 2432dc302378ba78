"""Every choice of the objective against its formula on plain numbers, gradients included, and in a whole update."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mneme.learner import Learner, LearnerSettings
from mneme.learner.batch import SequenceBatch
from mneme.learner.losses import clipped_policy_loss, value_loss
from mneme.learner.ppo import loss_of, steps_of
from mneme.learner.returns import Returns, normalized_over
from mneme.learner.windows import Piece
from mneme.rollout_workers import Collector

STEP = 1e-6  # of finite differences
KINDS: dict[str, Callable[[float], float]] = {
    "mse": lambda e: e * e / 2,
    "huber": lambda e: e * e / 2 if abs(e) < 1 else abs(e) - 0.5,
}


def plain_value_loss(value: float, old: float, target: float, clip: float | None, kind: str) -> float:
    loss = KINDS[kind](value - target)
    if clip is None:
        return loss
    return max(loss, KINDS[kind](old + min(max(value - old, -clip), clip) - target))


def plain_policy_loss(log_prob: float, old: float, a: float, clip: float, dual_clip: float | None) -> float:
    ratio = math.exp(log_prob - old)
    gain = min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
    return -(max(gain, dual_clip * a) if dual_clip is not None and a < 0 else gain)


def assert_is(found: Callable[[Tensor], Tensor], expected: Callable[[int, float], float], x: Tensor) -> None:
    """Values and gradients of what is elementwise."""
    x = x.clone().requires_grad_()
    y = found(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    for i, point in enumerate(x.detach().tolist()):
        assert float(y[i].detach()) == pytest.approx(expected(i, point))
        slope = (expected(i, point + STEP) - expected(i, point - STEP)) / (2 * STEP)
        assert float(gradient[i]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_value_loss_is_its_formula(kind: Any, clip: float | None) -> None:
    values, old, targets = 2 * torch.randn(3, 200, dtype=torch.float64)
    assert_is(
        lambda v: value_loss(v, old, targets, clip, kind),
        lambda i, v: plain_value_loss(v, float(old[i]), float(targets[i]), clip, kind),
        values,
    )


def test_hubers_gradient_is_bounded_where_the_error_overflows() -> None:
    values = torch.tensor([3e38, -3e38], requires_grad=True)
    (gradient,) = torch.autograd.grad(value_loss(values, values.detach(), torch.zeros(2), None, "huber").sum(), values)
    assert gradient.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("dual_clip", [None, 1.5, 3.0])
def test_the_policy_loss_is_its_formula(dual_clip: float | None) -> None:
    log_probs, old, advantages = torch.randn(3, 300, dtype=torch.float64)
    assert_is(
        lambda x: clipped_policy_loss(x, old, advantages, 0.2, dual_clip).loss,
        lambda i, x: plain_policy_loss(x, float(old[i]), float(advantages[i]), 0.2, dual_clip),
        log_probs,
    )
    loss = clipped_policy_loss(log_probs, old, advantages, 0.2, dual_clip).loss
    worst = float((loss / advantages.abs())[advantages < 0].max())
    assert worst > 3 if dual_clip is None else worst == pytest.approx(dual_clip)


@pytest.mark.parametrize(
    "changes",
    [{}, {"value_loss": "huber"}, {"dual_clip": 1.1}, {"value_loss": "huber", "clip_range_vf": 0.1, "dual_clip": 1.01}],
    ids=str,
)
def test_the_loss_of_an_update_is_the_sum_of_its_terms_over_the_steps(
    counting_collector: Callable[..., Collector], changes: dict[str, Any]
) -> None:
    """A policy that has moved, against a loop over steps; values and gradients of all parameters."""
    settings = LearnerSettings(vf_coef=0.7, ent_coef=0.03, clip_range=0.05, **changes)
    collector = counting_collector(settings)
    batch = SequenceBatch.from_fragments([collector.collect()[0]], torch.device("cpu"))
    policy = deepcopy(collector.policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    B, T = batch.rewards.shape
    noise = torch.randn(2, B, T)
    returns = Returns(noise[0], batch.values[:, :T] + 2 * noise[1], torch.ones(B, T))
    rows = torch.arange(B)
    steps, carry = steps_of(policy, settings.plan(T), batch, returns, Piece(rows, range(1)))
    loss = loss_of(policy, settings, steps, carry, B, None)

    observations = {name: x[:, :T].transpose(0, 1) for name, x in batch.observations.items()}
    out = policy.scan(observations, batch.resets[:, :T].t(), {n: c[:, 0] for n, c in batch.carries.items()})
    log_probs = policy.action_distribution.log_prob(out.parameters_TBA, batch.actions.t()).t()
    entropies = policy.action_distribution.entropy(out.parameters_TBA).t()
    values = out.value_TB.t()
    total, slopes = 0.0, torch.zeros(3, B, T)
    for b in range(B):
        for t in range(T):
            x, v = float(log_probs[b, t]), float(values[b, t])
            old = float(batch.log_probs[b, t]), float(returns.advantages[b, t]), 0.05, settings.dual_clip
            of_value = float(batch.values[b, t]), float(returns.targets[b, t]), settings.clip_range_vf
            total += plain_policy_loss(x, *old) - 0.03 * float(entropies[b, t])
            total += 0.7 * plain_value_loss(v, *of_value, settings.value_loss)
            rise = plain_policy_loss(x + STEP, *old) - plain_policy_loss(x - STEP, *old)
            steep = plain_value_loss(v + STEP, *of_value, settings.value_loss)
            steep -= plain_value_loss(v - STEP, *of_value, settings.value_loss)
            slopes[:, b, t] = torch.tensor([rise / (2 * STEP), 0.7 * steep / (2 * STEP), -0.03])
    assert float(loss.total) == pytest.approx(total, rel=1e-4)
    parameters = list(policy.parameters())
    found = torch.autograd.grad(loss.total, parameters)
    expected = torch.autograd.grad([log_probs, values, entropies], parameters, list(slopes))
    for (name, _), a, b in zip(policy.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.filterwarnings("ignore:std")
def test_advantages_of_a_minibatch_are_normalised_over_its_valid_steps_and_then_weighted() -> None:
    advantages, weights, valid = torch.randn(5, 7), torch.rand(5, 7), torch.rand(5, 7) > 0.3
    rows = torch.tensor([3, 0, 4])
    returns = Returns(advantages, torch.randn(5, 7), weights)
    found = normalized_over(returns, valid, rows)
    seen = [float(advantages[b, t]) for b in rows.tolist() for t in range(7) if valid[b, t]]
    for b in rows.tolist():
        for t in range(7):
            expected = (float(advantages[b, t]) - np.mean(seen)) / np.std(seen) * float(weights[b, t])
            assert float(found.advantages[b, t]) == pytest.approx(expected if valid[b, t] else 0.0, abs=1e-5)
    assert torch.equal(found.targets, returns.targets)
    nothing = normalized_over(returns, torch.zeros(5, 7, dtype=torch.bool), rows)
    assert torch.equal(nothing.advantages[rows], torch.zeros(3, 7))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_one_minibatch_is_normalised_as_its_batch_and_several_are_not(
    counting_collector: Callable[..., Collector], asynchronous: bool
) -> None:
    batchwise = LearnerSettings(num_epochs=1, num_minibatches=1, num_threads=1)
    collector = counting_collector(batchwise)
    fragment, _ = collector.collect()
    older = replace(
        fragment,
        log_probs=fragment.log_probs - 0.3 * np.random.default_rng(0).random(fragment.log_probs.shape, np.float32),
    )

    def after(settings: LearnerSettings) -> dict[str, np.ndarray]:
        learner = Learner(deepcopy(collector.policy), settings, seed=3, total_timesteps=1000, asynchronous=asynchronous)
        learner.update([(older if asynchronous else fragment).to_arrow()])
        return dict(learner.weights().arrays)

    one, by_minibatch = after(batchwise), after(replace(batchwise, normalize_advantages="minibatch"))
    for name, array in one.items():
        np.testing.assert_allclose(by_minibatch[name], array, atol=2e-5, err_msg=name)
    three, three_by_minibatch, raw = (
        after(replace(batchwise, num_minibatches=3, normalize_advantages=kind))  # type: ignore[arg-type]
        for kind in ("batch", "minibatch", "none")
    )
    head = "policy_head.weight"
    assert not np.allclose(three[head], three_by_minibatch[head], atol=1e-5)
    assert not np.allclose(three[head], raw[head], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dual_clip": 1.0}, "learner.dual_clip is 1.0; it must be above 1, or unset"),
        ({"value_loss": "mae"}, "learner.value_loss is 'mae'; use 'mse', 'huber' or 'two_hot'"),
        (
            {"value_loss": "two_hot", "clip_range_vf": 0.2},
            "learner.clip_range_vf is 0.2; value_loss=two_hot has no scalar prediction to clip; leave it unset",
        ),
        ({"normalize_advantages": True}, "learner.normalize_advantages is True; use 'batch', 'minibatch' or 'none'"),
    ],
)
def test_settings_refuse_what_cannot_work(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LearnerSettings(**changes)
