"""The learner: identities between modes, the first ratio, shards, refusals, exact state."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mneme.controllers import CONTROLLERS, Weights
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, Fragment, FragmentError

MODES: list[dict[str, Any]] = [
    {"mode": "cached"},
    {"mode": "truncated", "bptt_length": 5},
    {"mode": "cached", "carry_source": "stored"},
    {"mode": "truncated", "bptt_length": 6, "burn_in": 3, "carry_source": "stored"},
    {"mode": "full"},
]
KINDS = list(CONTROLLERS)


def make_learner(collector: Collector, settings: LearnerSettings, **options: Any) -> Learner:
    from copy import deepcopy

    return Learner(deepcopy(collector.policy), settings, seed=3, total_timesteps=10_000, **options)


def moved(before: Weights, after: Weights) -> dict[str, np.ndarray]:
    return {name: after.arrays[name] - before.arrays[name] for name in before.arrays}


def step_of(collector: Collector, settings: LearnerSettings, fragment: Fragment) -> dict[str, np.ndarray]:
    learner = make_learner(collector, settings)
    before = learner.weights()
    learner.update([fragment.to_arrow()])
    return moved(before, learner.weights())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())))
@pytest.mark.parametrize("anchor", ["never", "always"])
def test_first_ratio_is_one_across_episode_boundaries(
    counting_collector: Callable[..., Collector], kind: str, mode: dict[str, Any], anchor: Any
) -> None:
    settings = LearnerSettings(**mode, anchor=anchor, num_epochs=1, num_minibatches=2, num_threads=2)
    collector = counting_collector(settings, kind=kind, initial_carry="learned")
    learner = make_learner(collector, settings)
    for _ in range(2):  # the carries of the later one come from the middle of episodes
        fragment, _ = collector.collect(learner.version)
        assert fragment.terminated.any()
        assert fragment.truncated.any()
        report = learner.update([fragment.to_arrow()])
        assert report.metrics["ratio_error"] < 1e-5
        learner.weights().load_into(collector.policy)


def test_the_ratio_test_can_fail(counting_collector: Callable[..., Collector]) -> None:
    """Resets one step late, the classical mistake, are seen."""
    settings = LearnerSettings(mode="full", num_minibatches=1)
    collector = counting_collector(settings)
    fragment, _ = collector.collect()
    late = np.roll(fragment.resets, 1, axis=1)
    ends = late[:, 1:].copy()
    no_finals = {name: part[:0] for name, part in fragment.final_observations.items()}
    broken = replace(
        fragment, resets=late, terminated=ends, truncated=np.zeros_like(ends), final_observations=no_finals
    )
    assert make_learner(collector, settings).update([broken.to_arrow()]).metrics["ratio_error"] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_at_full_length_is_full(counting_collector: Callable[..., Collector], kind: str) -> None:
    full = LearnerSettings(mode="full", num_epochs=1, num_minibatches=2)
    collector = counting_collector(full, kind=kind)
    fragment, _ = collector.collect()
    truncated = LearnerSettings(mode="truncated", bptt_length=23, num_epochs=1, num_minibatches=2)
    a, b = step_of(collector, full, fragment), step_of(collector, truncated, fragment)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["fresh", "stored", "zero"])
def test_truncated_at_one_step_is_cached(counting_collector: Callable[..., Collector], kind: str, source: Any) -> None:
    cached = LearnerSettings(mode="cached", carry_source=source, num_epochs=1, num_minibatches=2)
    collector = counting_collector(cached, kind=kind)
    fragment, _ = collector.collect()
    truncated = replace(cached, mode="truncated", bptt_length=1)
    a, b = step_of(collector, cached, fragment), step_of(collector, truncated, fragment)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [{"mode": "cached"}, {"mode": "truncated", "bptt_length": 5}], ids=str)
def test_fresh_carries_are_the_stored_ones_as_long_as_the_weights_are(
    counting_collector: Callable[..., Collector], kind: str, mode: dict[str, Any]
) -> None:
    """The gradient before the first step; afterwards the stored carries are stale."""
    stored = LearnerSettings(**mode, carry_source="stored", num_epochs=1, num_minibatches=1, max_grad_norm=1e9)
    collector = counting_collector(stored, kind=kind)
    collector.collect()
    fragment, _ = collector.collect()
    found = [gradient_of(collector, replace(stored, carry_source=source), fragment) for source in ("stored", "fresh")]
    for name, gradient in found[0].items():
        scale = max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4 * scale, msg=lambda m, n=name: n + m)


def gradient_of(collector: Collector, settings: LearnerSettings, fragment: Fragment) -> dict[str, torch.Tensor]:
    """The gradient of an update's first minibatch."""
    learner, captured = make_learner(collector, settings), {}

    def capture() -> None:
        captured.update({n: p.grad.clone() for n, p in learner.policy.named_parameters() if p.grad is not None})

    learner._optimizer._descend = capture  # type: ignore[method-assign]
    learner.update([fragment.to_arrow()])
    return captured


def test_modes_differ_where_they_should(counting_collector: Callable[..., Collector]) -> None:
    cached, full = LearnerSettings(mode="cached"), LearnerSettings(mode="full")
    collector = counting_collector(cached)
    fragment, _ = collector.collect()
    a, b = step_of(collector, cached, fragment), step_of(collector, full, fragment)
    assert any(not np.allclose(a[name], b[name], atol=1e-5) for name in a)


@pytest.mark.parametrize("max_grad_norm", [1e9, 1e-3])
@pytest.mark.parametrize("kind", ["gru", "lstm"])  # an LSTM's two biases have one gradient
def test_shards_only_split_the_work(
    counting_collector: Callable[..., Collector], kind: str, max_grad_norm: float
) -> None:
    one = LearnerSettings(
        mode="truncated", bptt_length=5, num_epochs=1, num_minibatches=1, num_threads=1, max_grad_norm=max_grad_norm
    )
    collector = counting_collector(one, lanes=7, kind=kind)
    fragment, _ = collector.collect()
    gradients = []
    for shards in (1, 3):
        learner = make_learner(collector, replace(one, num_threads=shards))
        captured: list[torch.Tensor] = []
        learner._optimizer._descend = lambda learner=learner, captured=captured: captured.extend(  # type: ignore[method-assign]
            p.grad.clone() for p in learner.policy.parameters() if p.grad is not None
        )
        learner.update([fragment.to_arrow()])
        gradients.append(captured)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6 * min(max_grad_norm, 1), rtol=1e-5)


def test_one_update_is_adam_on_the_gradient_of_the_plainest_loss(counting_collector: Callable[..., Collector]) -> None:
    """Everything at once against a loop over lanes and steps with torch's own autograd and the formula of Adam."""
    settings = LearnerSettings(
        mode="full",
        num_epochs=1,
        num_minibatches=1,
        num_threads=2,
        gamma=0.9,
        gae_lambda=0.8,
        max_grad_norm=1e9,
        learning_rate=0.01,
    )
    collector = counting_collector(settings, kind="gru", initial_carry="learned")
    collector.collect()
    f, _ = collector.collect()
    learner = make_learner(collector, settings)
    policy, before = collector.policy, learner.weights()
    learner.update([f.to_arrow()])
    after = learner.weights()

    B, T = f.actions.shape
    advantages = np.zeros((B, T))
    for b in range(B):
        following = 0.0
        for t in reversed(range(T)):
            done = f.terminated[b, t] or f.truncated[b, t]
            value_after = (
                0.0 if f.terminated[b, t] else f.final_values[b, t] if f.truncated[b, t] else f.values[b, t + 1]
            )
            delta = f.rewards[b, t] + 0.9 * value_after - f.values[b, t]
            following = delta + 0.9 * 0.8 * following * (not done)
            advantages[b, t] = following
    targets = advantages + f.values[:, :T]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    total = torch.zeros(())
    for b in range(B):
        carry = {name: torch.from_numpy(c[b : b + 1, 0].copy()) for name, c in f.carries.items()}
        for t in range(T):
            if f.resets[b, t]:
                carry = policy.initial_carry(1)
            observation = torch.from_numpy(f.observations["observation"][b, t].copy()).reshape(1, 1, -1)
            out = policy.scan({"observation": observation}, torch.zeros(1, 1, dtype=torch.bool), carry)
            carry = out.carry
            distribution = torch.distributions.Categorical(logits=out.parameters_TBA[0, 0])
            ratio = (distribution.log_prob(torch.tensor(f.actions[b, t])) - float(f.log_probs[b, t])).exp()
            a = float(advantages[b, t])
            surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
            error = 0.5 * (out.value_TB[0, 0] - float(targets[b, t])) ** 2
            total = total - surrogate + 0.5 * error - 0.01 * distribution.entropy()
    gradients = torch.autograd.grad(total / (B * T), list(policy.parameters()))
    for (name, _), g in zip(policy.named_parameters(), gradients, strict=True):
        step = 0.01 * g / (g.abs() + 1e-5)  # Adam's first step: its averages, corrected, are g and g squared
        np.testing.assert_allclose(after.arrays[name] - before.arrays[name], -step.numpy(), atol=2e-4, err_msg=name)


def test_padding_and_its_contents_change_nothing(counting_collector: Callable[..., Collector]) -> None:
    """One sequence in windows that divide it and in windows that do not: both equal the sum over real steps."""
    settings = LearnerSettings(mode="cached", num_epochs=1, num_minibatches=1)
    collector = counting_collector(settings, kind="mlp", length=23)  # without memory the cut cannot matter
    fragment, _ = collector.collect()
    ragged = replace(settings, mode="truncated", bptt_length=7)
    a, b = step_of(collector, settings, fragment), step_of(collector, ragged, fragment)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=2e-5)


def test_ragged_minibatches_use_every_sequence(counting_collector: Callable[..., Collector]) -> None:
    settings = LearnerSettings(mode="full", num_epochs=1, num_minibatches=4)
    collector = counting_collector(settings, lanes=6)  # 2 + 2 + 1 + 1
    report = make_learner(collector, settings).update([collector.collect()[0].to_arrow()])
    assert report.steps == 6 * 23
    assert np.isfinite(report.metrics["policy_loss"])


def test_a_minibatch_smaller_than_a_sequence_is_refused_beforehand() -> None:
    with pytest.raises(ValueError, match="lower learner.num_minibatches or raise rollout.num_envs"):
        LearnerSettings(num_minibatches=7).check_batch(6)


def test_an_update_that_lost_a_fragment_takes_fewer_minibatches(counting_collector: Callable[..., Collector]) -> None:
    settings = LearnerSettings(mode="full", num_minibatches=7)
    collector = counting_collector(settings, lanes=6)
    report = make_learner(collector, settings).update([collector.collect()[0].to_arrow()])
    assert report.steps == 6 * 23
    assert np.isfinite(report.metrics["grad_norm"])


def test_a_bad_fragment_is_refused_counted_and_training_goes_on(
    counting_collector: Callable[..., Collector],
) -> None:
    settings = LearnerSettings(mode="full", num_minibatches=1)
    collector = counting_collector(settings)
    good, _ = collector.collect()
    rewards = good.rewards.copy()
    rewards[2, 5] = np.nan
    learner = make_learner(collector, settings)
    report = learner.update([replace(good, rewards=rewards).to_arrow(), good.to_arrow()])
    assert len(report.refused) == 1
    assert "rewards" in report.refused[0]
    assert "lane 2" in report.refused[0]
    assert report.steps == good.steps
    assert all(np.isfinite(array).all() for array in learner.weights().arrays.values())
    with pytest.raises(FragmentError, match="rewards"):
        learner.update([replace(good, rewards=rewards).to_arrow()])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (lambda f: {"carries": {"h": f.carries["h"][..., :-1]}}, "carry 'h' is torch.float32 of shape"),
        (lambda f: {"carries": {"h": f.carries["h"].astype(np.float64)}}, "carry 'h' is torch.float64"),
        (lambda f: {"carries": {"c": f.carries["h"]}}, r"the carry holds \['c'\]"),
        (lambda f: {"actions": f.actions.astype(np.float32)}, "an action is torch.float32 of shape"),
        (lambda f: {"actions": f.actions[..., None]}, r"an action is torch.int64 of shape \[1\]"),
        (
            lambda f: {
                name: {"observation": getattr(f, name)["observation"][..., :2]}
                for name in ("observations", "final_observations")
            },
            "observation 'observation' is torch.float32 of shape",
        ),
    ],
)
def test_a_fragment_that_another_policy_made_is_refused_and_training_goes_on(
    counting_collector: Callable[..., Collector], changes: Callable[[Fragment], dict[str, Any]], sentence: str
) -> None:
    settings = LearnerSettings(mode="full", num_minibatches=1)
    collector = counting_collector(settings)
    good, _ = collector.collect()
    report = make_learner(collector, settings).update([replace(good, **changes(good)).to_arrow(), good.to_arrow()])
    assert report.steps == good.steps
    (refused,) = report.refused
    assert re.search(f"a fragment does not fit the policy: {sentence}", refused)


@pytest.mark.parametrize("options", [{"length": 11}, {"warm_up": 3}])
def test_fragments_of_other_sizes_are_refused(
    counting_collector: Callable[..., Collector], options: dict[str, Any]
) -> None:
    settings = LearnerSettings(mode="full", num_minibatches=1)
    collector = counting_collector(settings)
    fragments = [c.collect()[0].to_arrow() for c in (collector, counting_collector(settings, **options))]
    (refused,) = make_learner(collector, settings).update(fragments).refused
    assert refused.endswith("others have 23 steps with a carry every 23 and 0 steps of its past; use one setting")


def test_a_fragment_from_the_future_is_refused(counting_collector: Callable[..., Collector]) -> None:
    settings = LearnerSettings(mode="full", num_minibatches=1)
    collector = counting_collector(settings)
    with pytest.raises(FragmentError, match="claims weights version 7"):
        make_learner(collector, settings).update([collector.collect(7)[0].to_arrow()])


def test_state_restores_to_the_bit(counting_collector: Callable[..., Collector]) -> None:
    settings = LearnerSettings(mode="full", num_epochs=2, num_minibatches=2, lr_schedule="linear", num_threads=2)
    collector = counting_collector(settings)
    fragments = [collector.collect()[0].to_arrow() for _ in range(3)]
    straight = make_learner(collector, settings)
    straight.update(fragments[:1])
    saved = {name: array.copy() for name, array in straight.state().items()}
    straight.update(fragments[1:2])
    straight.update(fragments[2:])
    resumed = make_learner(collector, settings)
    resumed.set_state(saved)
    resumed.update(fragments[1:2])
    resumed.update(fragments[2:])
    assert straight.weights().digest() == resumed.weights().digest()
    a, b = straight.state(), resumed.state()
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_fresh_fragments_have_no_staleness_and_old_ones_do(
    counting_collector: Callable[..., Collector],
) -> None:
    settings = LearnerSettings(
        mode="truncated", bptt_length=5, carry_source="stored", anchor="always", num_minibatches=2
    )
    collector = counting_collector(settings)
    learner = make_learner(collector, settings, asynchronous=True)
    fragment = collector.collect()[0].to_arrow()
    fresh = learner.update([fragment]).metrics
    assert fresh["staleness"] < 1e-5
    assert fresh["staleness_kl"] < 1e-8
    assert fresh["lag"] == 0
    stale = learner.update([fragment]).metrics
    assert stale["staleness"] > 1e-3
    assert stale["staleness_kl"] > 1e-9
    assert stale["lag"] == 1
    assert stale["ratio_error"] < 1e-5  # anchored: still exactly one


def test_target_kl_stops_the_epochs(counting_collector: Callable[..., Collector]) -> None:
    settings = LearnerSettings(mode="full", num_epochs=10, num_minibatches=2, target_kl=1e-9, learning_rate=1e-2)
    collector = counting_collector(settings)
    assert make_learner(collector, settings).update([collector.collect()[0].to_arrow()]).metrics["epochs"] < 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bptt_length": 0}, "learner.bptt_length is 0"),
        ({"gamma": 1.5}, "learner.gamma is 1.5"),
        ({"learning_rate": -1.0}, "learner.learning_rate is -1.0"),
        (
            {"mode": "truncated", "bptt_length": 4, "burn_in": 5, "carry_source": "stored"},
            "burn_in is 5; use at most one window, bptt_length=4",
        ),
        ({"mode": "full", "burn_in": 5}, "burn-in is for truncated mode"),
        (
            {"mode": "truncated", "burn_in": 5},
            "learner.burn_in is 5; it refreshes stored carries; leave it out, or set",
        ),
        ({"target_kl": 0.0}, "learner.target_kl is 0.0"),
        ({"carry_source": "zero"}, "learner.carry_source is 'zero'; mode=full has no cuts to start afresh at"),
    ],
)
def test_settings_refuse_what_cannot_work(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        LearnerSettings(**changes)
