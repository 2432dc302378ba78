"""What is known of a run before it starts."""

import pytest
import torch

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.workers import LearnerWorker, RolloutWorker


@pytest.mark.parametrize(
    "overrides",
    [
        ["env.kwargs.horizon=40", "policy.controller.hidden_size=16"],
        ["env.kwargs.horizon=40", "learner.mode=cached", "policy.controller.kind=lstm"],
        ["env.id=mneme/Counting-v0", "rollout.unroll_length=64", "service.mode=async", "spaces.previous_action=true"],
    ],
)
def test_a_fragment_is_little_more_than_was_foretold(overrides: list[str]) -> None:
    torch.set_num_threads(1)
    settings = [
        "rollout.num_envs=32",
        "rollout.num_workers=2",
        "policy.controller.backend=torch",
        "learner.num_threads=1",
    ]
    blueprint = make_blueprint(load_config(None, [*settings, *overrides]))
    foretold = blueprint.fragment_bytes(blueprint.policy())
    delivery, _ = RolloutWorker(blueprint, 0).collect(LearnerWorker(blueprint).weights(), 0)
    assert foretold <= delivery.nbytes <= 1.35 * foretold
