"""What is known of a run before it starts."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError
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


@pytest.mark.parametrize(
    "id,kwargs,argument",
    [
        ("DelayedCue", {"horizon": 40}, "horizon"),
        ("TMaze", {"length": 40}, "length"),
        ("CopyMemory", {"delay": 40}, "delay"),
    ],
)
def test_stages_are_made_that_lengthen_the_horizon(id: str, kwargs: dict[str, int], argument: str) -> None:
    words = [f"env.id=mneme/{id}-v0", f"env.kwargs={kwargs}", "curriculum.start=10", "curriculum.growth=1.5"]
    config = make_blueprint(load_config(None, words)).config
    assert config.curriculum.stages == tuple({argument: horizon} for horizon in (10, 15, 22, 34))
    assert make_blueprint(config).config.curriculum.stages == config.curriculum.stages  # as a resumed run does


def test_every_made_stage_is_longer_than_the_one_before() -> None:
    words = ["env.kwargs={horizon: 5}", "curriculum.start=1", "curriculum.growth=1.01"]
    stages = make_blueprint(load_config(None, words)).config.curriculum.stages
    assert [stage["horizon"] for stage in stages] == [1, 2, 3, 4]


def test_made_stages_take_the_place_of_those_of_another_horizon() -> None:
    words = ["env.kwargs={horizon: 40}", "curriculum.start=10", "curriculum.growth=2"]
    config = make_blueprint(load_config(None, words)).config
    again = make_blueprint(config.changed("env", kwargs={"horizon": 100})).config
    assert [stage["horizon"] for stage in again.curriculum.stages] == [10, 20, 40, 80]


def test_stages_cannot_be_made_of_what_is_not_known_or_not_below_the_horizon() -> None:
    pole = ["env.id=CartPole-v1", "env.kwargs={}", "env.success_return=100", "curriculum.start=10"]
    with pytest.raises(ConfigError, match="CartPole-v1 does not say which of its arguments is the horizon"):
        make_blueprint(load_config(None, pole))
    with pytest.raises(ConfigError, match=r"curriculum\.start is 40, and env\.kwargs\.horizon is 40"):
        make_blueprint(load_config(None, ["env.kwargs={horizon: 40}", "curriculum.start=40"]))
    for word, sentence in (("start=0", "must be at least 1"), ("growth=1.0", "must be above 1")):
        with pytest.raises(ConfigError, match=sentence):
            load_config(None, [f"curriculum.{word}"])


class Silent(gym.Env[np.ndarray, int]):
    """It says what its horizon is, and not what success is."""

    horizon_argument = "steps"
    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, steps: int = 9) -> None:
        self._steps = steps

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}


def test_stages_cannot_be_made_where_nothing_says_what_success_is() -> None:
    gym.register("Silent-v0", Silent)
    with pytest.raises(ConfigError, match="success"):
        make_blueprint(load_config(None, ["env.id=Silent-v0", "env.kwargs={}", "curriculum.start=3"]))
