"""A rollout worker's environments: its own, its evaluation's, and where the two are the same."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.workers import LearnerWorker, RolloutWorker
from mneme.rollout_workers import Fragment

OPEN: set[int] = set()
"""Numbers of the environments that are open."""


class Numbered(gym.Env[np.ndarray, np.int64]):
    """May be open once under each number; observes its number and its step. Episodes have five steps."""

    observation_space = spaces.Box(0, 100, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, number: int) -> None:
        assert number not in OPEN, f"{number} is taken"
        OPEN.add(number)
        self.number = number

    def observe(self) -> np.ndarray:
        return np.array([self.number, self.t], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.t = 0
        return self.observe(), {}

    def step(self, action: np.int64) -> Any:
        self.t += 1
        return self.observe(), 1.0, self.t == 5, False, {}

    def close(self) -> None:
        OPEN.discard(self.number)


@pytest.fixture
def numbered() -> Iterator[str]:
    OPEN.clear()
    gym.register("mneme-test/Numbered-v0", entry_point=Numbered)
    yield "mneme-test/Numbered-v0"
    del gym.registry["mneme-test/Numbered-v0"]


def workers(id: str, *overrides: str) -> tuple[list[RolloutWorker], Any]:
    base = ["rollout.num_envs=4", "rollout.num_workers=2", "rollout.unroll_length=8", "policy.controller.hidden_size=8"]
    config = load_config(None, [f"env.id={id}", "env.kwargs.number={lane}", *base, *overrides])
    blueprint = make_blueprint(config)
    return [RolloutWorker(blueprint, worker) for worker in range(2)], LearnerWorker(blueprint).weights()


def test_lanes_that_may_be_open_at_once_have_numbers_of_their_own(numbered: str) -> None:
    made, weights = workers(numbered)
    assert {0, 1, 2, 3} == OPEN
    seen: list[set[int]] = []
    for worker in made:
        place = worker._blueprint.place(worker._worker, 0, copy=1)
        seen.append({place.first_lane, place.worker})
        assert worker.evaluate(weights, 4, 7, 60.0, 0).episodes == 4
    assert seen == [{4, 2}, {6, 3}]
    assert {0, 1, 2, 3} == OPEN
    for worker in made:
        worker.restart(1)
    assert {0, 1, 2, 3} == OPEN


@pytest.mark.parametrize("borrowed", [False, True])
def test_an_evaluation_may_borrow_the_environments_of_training(numbered: str, borrowed: bool) -> None:
    kwargs = ["env.kwargs.number={lane % 4}", "train.evaluation_environments=training"] if borrowed else []
    made, weights = workers(numbered, *kwargs)
    before = [worker.collect(weights, 0)[0] for worker in made]
    evaluations = [worker.evaluate(weights, 4, 7, 60.0, part) for part, worker in enumerate(made)]
    assert all(evaluation.lengths.tolist() == [5] * 4 for evaluation in evaluations)
    for worker, delivery in zip(made, before, strict=True):
        after, batch = worker.collect(weights, 0)
        assert batch is not None
        assert after.incarnation == delivery.incarnation + borrowed
        first = Fragment.from_arrow(batch).observations["observation"][:, 0, 1]
        assert first.tolist() == ([0.0, 0.0] if borrowed else [3.0, 3.0])  # episodes begin anew, or go on
    assert {0, 1, 2, 3} == OPEN


def test_a_curriculum_cannot_lend_its_environments(numbered: str) -> None:
    with pytest.raises(ConfigError, match="train.evaluation_environments is training, but the environments of curr"):
        workers(
            "mneme/DelayedCue-v0", "env.kwargs={horizon: 5}", "curriculum.stages=[{horizon: 2}]",
            "train.evaluation_environments=training",
        )  # fmt: skip


def test_a_double_buffered_worker_gives_what_another_gives() -> None:
    settings = ["env.kwargs={horizon: 5}", "rollout.num_envs=4", "rollout.num_workers=1", "rollout.unroll_length=8"]
    common = [*settings, "policy.controller.hidden_size=8", "train.evaluation_environments=training"]
    given: list[list[Any]] = []
    for own in (["sync", "false"], ["async", "true"]):
        names = ("env.vectorization_mode", "rollout.double_buffered")
        words = [f"{name}={value}" for name, value in zip(names, own, strict=True)]
        blueprint = make_blueprint(load_config(None, [*common, *words]))
        worker, weights = RolloutWorker(blueprint, 0), LearnerWorker(blueprint).weights()
        assert worker.state() is worker.expected_state() is None
        batches = [worker.collect(weights, 0) for _ in range(2)]
        evaluation = worker.evaluate(weights, 8, 7, 60.0, 0)
        batches.append(worker.collect(weights, 0))  # of new episodes, as the evaluation has borrowed the environments
        worker.close()
        deliveries = [delivery._replace(stats=None) for delivery, _ in batches]
        given.append(
            [deliveries, [batch for _, batch in batches], evaluation.returns.sum(), evaluation.lengths.tolist()]
        )
    assert given[0] == given[1]


def test_what_is_double_buffered_has_halves_in_other_processes() -> None:
    with pytest.raises(
        ConfigError, match="rollout.double_buffered is set, but with env.vectorization_mode=auto enviro"
    ):
        workers("mneme/DelayedCue-v0", "env.kwargs={horizon: 5}", "rollout.double_buffered=true")
    with pytest.raises(ConfigError, match="gives each of 2 workers an odd number of environments, which has no halves"):
        workers(
            "mneme/DelayedCue-v0", "env.kwargs={horizon: 5}", "rollout.double_buffered=true",
            "env.vectorization_mode=async", "rollout.num_envs=6",
        )  # fmt: skip
