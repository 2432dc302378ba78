"""What a controller says besides its outputs: in the metrics, and, as an auxiliary loss, in the gradient."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mneme.controllers import ControllerSettings, Policy, PolicySettings, build_policy
from mneme.controllers.gru import GruController
from mneme.envs import EnvSettings, make_vector_env
from mneme.learner import Learner, LearnerSettings
from mneme.rollout_workers import Collector, policy_spec


class Talkative(GruController):
    """A GRU that reports its first unit, whose square is its auxiliary loss. One name is that of a loss."""

    def signals(self, y_TBH: Tensor) -> dict[str, Tensor]:
        return {"first": y_TBH[..., 0], "square": y_TBH[..., 0].square(), "policy_loss": y_TBH[..., 0] + 100.0}

    def auxiliary_loss(self, means_N: Mapping[str, Tensor]) -> Tensor:
        return 100.0 * means_N["square"]


def collected() -> tuple[Collector, Policy]:
    env = make_vector_env(EnvSettings(id="mneme/Counting-v0"), 4)
    controller = ControllerSettings(kind="tests.learner.test_signals:Talkative", hidden_size=8)
    policies = [build_policy(policy_spec(env), PolicySettings(controller=controller), 5, seed=0) for _ in range(2)]
    return Collector(env, policies[0], 20, 20, seed=0), policies[1]


def test_signals_are_averaged_over_valid_steps_into_the_metrics() -> None:
    collector, policy = collected()
    fragment, _ = collector.collect()
    valid = np.ones_like(fragment.valid)
    valid[:, -1] = False
    resets = fragment.resets.copy()
    resets[:, -1] = True
    ends = {"terminated": fragment.terminated & valid, "truncated": fragment.truncated & valid}
    fragment = replace(fragment, valid=valid, resets=resets, **ends)
    with torch.no_grad():
        observations = {
            name: torch.from_numpy(x[:, :-1].copy()).transpose(0, 1) for name, x in fragment.observations.items()
        }
        carry = {name: torch.from_numpy(c[:, 0].copy()) for name, c in fragment.carries.items()}
        out = policy.scan(observations, torch.from_numpy(resets[:, :-1].copy()).t(), carry)
    first = out.signals["first"][:-1]
    settings = LearnerSettings(num_epochs=1, num_minibatches=1, num_threads=2)
    metrics = Learner(policy, settings, seed=0, total_timesteps=100).update([fragment.to_arrow()]).metrics
    assert metrics["signal/first"] == pytest.approx(float(first.mean()), rel=1e-5)
    assert metrics["auxiliary_loss"] == pytest.approx(float(100.0 * first.square().mean()), rel=1e-5)
    assert metrics["signal/policy_loss"] == pytest.approx(float(first.mean()) + 100.0, rel=1e-5)
    assert abs(metrics["policy_loss"]) < 1.0  # of a name, the loss has its own


def test_an_auxiliary_loss_pushes_what_it_is_made_of_down() -> None:
    collector, policy = collected()
    fragment, _ = collector.collect()
    settings = LearnerSettings(num_epochs=10, num_minibatches=1, learning_rate=1e-2)
    learner = Learner(policy, settings, seed=0, total_timesteps=100)
    before = learner.update([fragment.to_arrow()]).metrics["auxiliary_loss"]
    learner.version = 0
    assert learner.update([fragment.to_arrow()]).metrics["auxiliary_loss"] < before / 2


class Frugal(GruController):
    """A GRU whose auxiliary loss is of a weight of its own, and says nothing."""

    def auxiliary_loss(self, means_N: Mapping[str, Tensor]) -> Tensor:
        return next(self.parameters()).square().sum()


def test_an_auxiliary_loss_may_be_of_parameters_alone() -> None:
    collector, _ = collected()
    controller = ControllerSettings(kind="tests.learner.test_signals:Frugal", hidden_size=8)
    policy = build_policy(policy_spec(collector.env), PolicySettings(controller=controller), 5, seed=0)
    size = float(next(policy.controller.parameters()).square().sum())
    settings = LearnerSettings(num_epochs=1, num_minibatches=1, num_threads=1)
    fragment = Collector(collector.env, policy, 20, 20, seed=0).collect()[0]
    metrics = Learner(policy, settings, seed=0, total_timesteps=100).update([fragment.to_arrow()]).metrics
    assert metrics["auxiliary_loss"] == pytest.approx(size, rel=1e-5)
