"""The learner on every kind of space, and on steps that are not valid."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from mneme.controllers import ControllerSettings, PolicySettings, build_policy
from mneme.controllers.normalizer import Normalizer
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, Fragment, SpaceSettings, policy_spec
from tests.environments import Everything, Recall

MODES: list[dict[str, Any]] = [
    {"mode": "cached"},
    {"mode": "truncated", "bptt_length": 6, "burn_in": 3, "carry_source": "stored"},
    {"mode": "full"},
]


def same_step(make: Callable[[], Any], lanes: int) -> SyncVectorEnv:
    return SyncVectorEnv([make] * lanes, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("anchor", ["never", "always"])
@pytest.mark.parametrize("mode", MODES, ids=["cached", "truncated", "full"])
@pytest.mark.parametrize("stack", [1, 3])
def test_the_first_ratio_is_one_with_every_space_mask_and_statistic(
    mode: dict[str, Any], anchor: Any, stack: int
) -> None:
    env = same_step(lambda: Everything(masked=True), 4)
    spaces = SpaceSettings(previous_action=True, previous_reward=True, squash=True, stack=stack)
    controller = ControllerSettings(hidden_size=8, initial_carry="learned")
    policy_settings = PolicySettings(controller=controller, normalize_observations=True, image_features=8)
    settings = LearnerSettings(**mode, anchor=anchor, num_epochs=2, num_minibatches=2, normalize_rewards=True)
    policies = [build_policy(policy_spec(env, spaces), policy_settings, 5, seed=0) for _ in range(2)]
    stride = settings.plan(23).carry_stride
    collector = Collector(env, policies[0], 23, stride, seed=0, spaces=spaces)
    learner = Learner(policies[1], settings, seed=0, total_timesteps=1000)
    for version in range(3):
        fragment, _ = collector.collect(version)
        report = learner.update([fragment.to_arrow()])
        assert not report.refused
        assert report.metrics["ratio_error"] < 1e-5
        assert all(np.isfinite(report.metrics[name]) for name in ("policy_loss", "value_loss", "entropy", "kl"))
        learner.weights().load_into(collector.policy)


def test_the_first_batch_is_normalised_before_it_is_learned_from_and_counted_once() -> None:
    env = same_step(lambda: gymnasium.make("CartPole-v1"), 4)
    settings = PolicySettings(controller=ControllerSettings(hidden_size=8), normalize_observations=True)
    policy = build_policy(policy_spec(env), settings, 5, seed=0)
    fragment, _ = Collector(env, policy, 23, 23, seed=0).collect(0)
    observations = {"observation": 500 + 100 * fragment.observations["observation"]}
    learner = Learner(policy, LearnerSettings(num_epochs=2, num_minibatches=2), seed=0, total_timesteps=1000)
    (normalizer,) = (module for module in policy.modules() if isinstance(module, Normalizer))
    seen: list[Tensor] = []
    policy.encoder.register_forward_pre_hook(lambda _, x: seen.append(x[0]) if torch.is_grad_enabled() else None)
    for update in range(2):
        seen.clear()
        report = learner.update([replace(fragment, observations=observations).to_arrow()])
        assert seen and max(float(x.mean()) for x in seen) < 5  # raw they are clipped to 10, all of them
        assert normalizer.count == (update + 1) * fragment.valid.sum()
        assert update or (report.metrics["ratio_error"] < 1e-5 and "staleness" not in report.metrics)
    assert not policy.lacks_statistics()


def with_filler(fragment: Fragment, filler: np.random.Generator) -> Fragment:
    """The fragment with rows 2 and 7 made filler, which holds whatever `filler` draws."""
    B = fragment.num_envs
    valid, resets = fragment.valid.copy(), fragment.resets.copy()
    terminated, truncated = fragment.terminated.copy(), fragment.truncated.copy()
    changed = {name: getattr(fragment, name).copy() for name in ("log_probs", "rewards", "values", "actions")}
    observation = fragment.observations["observation"].copy()
    for t in (2, 7):
        # The step before ends an episode, so that nothing bootstraps from the filler's value either.
        terminated[:, t - 1], truncated[:, t - 1], resets[:, t] = True, False, True
        valid[:, t], terminated[:, t], truncated[:, t], resets[:, t + 1] = False, False, False, True
        for name in ("log_probs", "rewards", "values"):
            changed[name][:, t] = filler.normal(size=B)
        changed["actions"][:, t] = filler.integers(2, size=B)
        observation[:, t] = filler.normal(size=(B, 3))
    return replace(
        fragment, valid=valid, resets=resets, terminated=terminated, truncated=truncated,
        observations={"observation": observation}, **changed,
    )  # fmt: skip


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=["cached", "truncated", "full"])
def test_what_filler_holds_changes_no_bit(
    counting_collector: Callable[..., Collector],
    copy_of: Callable[[Any], Any],
    mode: dict[str, Any],
    normalize: bool,
) -> None:
    settings = LearnerSettings(**mode, num_minibatches=2, normalize_rewards=normalize, num_threads=1)
    collector = counting_collector(settings)
    fragment, _ = collector.collect()
    results = []
    for seed in (0, 1):
        learner = Learner(copy_of(collector.policy), settings, seed=0, total_timesteps=1000)
        report = learner.update([with_filler(fragment, np.random.default_rng(seed)).to_arrow()])
        assert report.steps == fragment.num_envs * (fragment.length - 2)
        results.append((learner.weights().digest(), report.metrics))
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        np.testing.assert_equal(value, results[1][1][name], err_msg=name)


@pytest.mark.parametrize("kind", ["discrete", "multi_discrete", "multi_binary", "box", "tuple"])
def test_every_kind_of_action_learns_to_recall_a_bit(kind: str) -> None:
    env = same_step(lambda: Recall(kind), 64)
    controller = ControllerSettings(hidden_size=16)
    policy = build_policy(policy_spec(env), PolicySettings(controller=controller), 2, seed=0)
    settings = LearnerSettings(learning_rate=1e-2, num_minibatches=2)
    learner = Learner(build_policy(policy_spec(env), PolicySettings(controller=controller), 2, 0), settings,
                      seed=0, total_timesteps=100_000)  # fmt: skip
    collector = Collector(env, policy, 16, 16, seed=0)
    for version in range(15):
        fragment, stats = collector.collect(version)
        learner.update([fragment.to_arrow()])
        learner.weights().load_into(policy)
    assert stats.returns.mean() > 0.9  # guessing earns 0.5
