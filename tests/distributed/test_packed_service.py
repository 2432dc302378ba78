"""Batches of whole episodes through workers and service: what arrives, what waits, and what is refused."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from mneme.configuration.config import Config, load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.replay import Replay
from mneme.distributed.runners import LocalRunner, ServiceError
from mneme.distributed.service import synchronous
from mneme.distributed.workers import LearnerWorker, RolloutWorker
from mneme.envs.counting import Counting
from mneme.rollout_workers import Fragment


def config(*overrides: str) -> Config:
    base = [
        "env.id=mneme/Counting-v0", "rollout.num_envs=10", "rollout.num_workers=2", "rollout.unroll_length=12",
        "rollout.batching=episodes", "policy.controller.hidden_size=8", "learner.num_minibatches=2",
        "learner.num_threads=1", "learner.num_epochs=1",
    ]  # fmt: skip
    return load_config(None, [*base, *overrides])


def steps_of(fragment: Fragment) -> Iterator[tuple[int, int, int]]:
    """Lane among all, episode and step of every valid step, each checked against its reward."""
    seen = fragment.observations["observation"][:, : fragment.length][fragment.valid].astype(int)
    np.testing.assert_array_equal(seen[:, 0], fragment.rewards[fragment.valid])
    for step, lane, episode in seen.tolist():
        yield 5 * int(fragment.worker[0]) + lane, episode, step


def test_every_step_of_every_complete_episode_reaches_the_learner_once_and_in_order() -> None:
    blueprint = make_blueprint(config("env.kwargs={shortest: 3, spread: 8}"))
    runner = LocalRunner(blueprint)
    replay: Replay[Any] = Replay(10**9, max_lag=0)
    learned: list[Fragment] = []
    learn = runner.learn

    def watched(fragments: Any) -> Any:
        learned.extend(Fragment.from_arrow(batch) for batch in fragments)
        return learn(fragments)

    runner.learn = watched  # type: ignore[method-assign]
    updates = list(islice(synchronous(runner, replay, patience=0), 12))
    collected = max(delivery.stats.step for update in updates for delivery in update.deliveries if delivery.stats)
    found = Counter(step for fragment in learned for step in steps_of(fragment))
    assert set(found.values()) == {1}
    assert sum(update.report.steps for update in updates) == found.total()
    for fragment in learned:
        assert fragment.warm_up == 0
        seen = fragment.observations["observation"][..., 0]
        goes_on = fragment.valid & ~fragment.resets[:, 1:]
        np.testing.assert_array_equal(seen[:, 1:][goes_on], seen[:, :-1][goes_on] + 1)
    for lane in range(10):
        length = 3 + lane % 5  # each worker's environments number their own lanes
        whole = collected // length  # episodes that have ended
        steps = {(episode, step) for of, episode, step in found if of == lane}
        episodes = {episode for episode, _ in steps}
        assert steps == {(episode, step) for episode in episodes for step in range(length)}  # none in part
        assert max(episodes) < whole <= len(episodes) + 12  # the rest waits


def test_where_no_episode_has_ended_all_collect_again_and_it_is_no_failure() -> None:
    runner = LocalRunner(make_blueprint(config("env.kwargs={shortest: 40, spread: 1}", "rollout.unroll_length=40")))
    for worker in runner._workers:
        worker._collector.length = 10
    arrivals = runner.collect()
    assert [(fragment, delivery.error, delivery.nbytes) for delivery, fragment in arrivals] == [(None, None, 0)] * 2
    update = next(synchronous(runner, Replay(10**9, max_lag=0), patience=0))
    assert update.report.steps == 10 * 40
    assert len(update.deliveries) == 6  # of three rounds
    assert update.report.metrics["padding"] == 0.0


class Nonsense(Counting):
    """Every reward is not a number."""

    def _transition(self, action_B: np.ndarray) -> Any:
        _, terminated, truncated = super()._transition(action_B)
        return np.full(self.num_envs, np.nan), terminated, truncated


def test_a_worker_that_only_fails_ends_the_run_all_the_same() -> None:
    gym.register("mneme-test/Nonsense-v0", vector_entry_point=Nonsense)
    try:
        runner = LocalRunner(make_blueprint(config("env.id=mneme-test/Nonsense-v0", "env.kwargs={shortest: 20}")))
        with pytest.raises(ServiceError, match="3 rounds in a row brought no fragment: .*rewards"):
            next(synchronous(runner, Replay(10**9, max_lag=0), patience=2))
    finally:
        del gym.registry["mneme-test/Nonsense-v0"]


def test_what_waits_is_dropped_where_lanes_begin_anew_and_is_part_of_the_state() -> None:
    blueprint = make_blueprint(config("env.kwargs={shortest: 9, spread: 4}", "curriculum.stages=[{shortest: 2}]"))
    weights = LearnerWorker(blueprint).weights()
    worker, other = RolloutWorker(blueprint, 0), RolloutWorker(blueprint, 0)
    for _ in range(3):
        worker.collect(weights, 0)
    state, largest = worker.state(), worker.expected_state()
    assert state is not None
    assert largest is not None
    assert state.keys() == largest.keys()
    assert len(state["waiting.piece.lane"]) > 0
    other.set_state(state)
    (_, a), (_, b) = worker.collect(weights, 0), other.collect(weights, 0)
    assert (a is None) == (b is None)
    assert a is None or a.equals(b)
    again = other.state()
    for name, x in (worker.state() or {}).items():
        np.testing.assert_array_equal(x, (again or {})[name], err_msg=name)
    worker.enter(1)
    fresh = worker.state()
    assert fresh is not None
    assert len(fresh["waiting.piece.lane"]) == 0
    _, batch = worker.collect(weights, 1)
    if batch is not None:
        assert (Fragment.from_arrow(batch).first_step >= 0).all()


def test_a_state_that_is_not_that_of_its_environments_is_refused() -> None:
    blueprint = make_blueprint(config("env.kwargs={shortest: 9, spread: 4}"))
    weights, worker = LearnerWorker(blueprint).weights(), RolloutWorker(blueprint, 0)
    for _ in range(3):
        worker.collect(weights, 0)
    state = worker.state()
    assert state is not None
    worker.try_out(state)
    none = {name: x[:0] for name, x in state.items() if name.startswith("waiting.")}
    with pytest.raises(ValueError, match="those that the environments are in"):
        RolloutWorker(blueprint, 0).try_out(state | none)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "rollout.warm_up=4",
            "rollout.warm_up is 4, but with rollout.batching=episodes sequences begin with an episode",
        ),
        ("learner.anchor=never", "learner.anchor is never, but rollout.batching=episodes corrects what older weights"),
    ],
)
def test_what_cannot_work_with_whole_episodes_is_refused(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_blueprint(config(override))


@pytest.mark.parametrize("service", ["sync", "async"])
@pytest.mark.parametrize(
    ("settings", "stride"),
    [
        ([], 12),
        (["learner.mode=cached"], 12),
        (["learner.mode=truncated", "learner.bptt_length=5", "learner.carry_source=stored"], 5),
    ],
)
def test_carries_are_stored_where_windows_of_packed_rows_begin(settings: list[str], stride: int, service: str) -> None:
    blueprint = make_blueprint(config(*settings, f"service.mode={service}"))
    assert (blueprint.carry_stride, blueprint.warm_up) == (stride, 0)
    weights, worker = LearnerWorker(blueprint).weights(), RolloutWorker(blueprint, 0)
    packed = [batch for _, batch in (worker.collect(weights, 0) for _ in range(6)) if batch is not None]
    assert packed
    for batch in packed:
        fragment = Fragment.from_arrow(batch)
        fragment.validate()
        assert fragment.carry_stride == stride
        assert fragment.num_envs * blueprint.fragment_bytes(blueprint.policy()) <= 5 * batch.nbytes
