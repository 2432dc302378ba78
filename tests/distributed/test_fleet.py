"""Rollout actors on a real Ray: what they deliver arrives in order, and they are replaced where they die or hang."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.exceptions import ActorUnavailableError

from mneme.configuration.config import Config, load_config
from mneme.distributed import doubts, fleet, stragglers
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.runners import ServiceError
from mneme.distributed.service import asynchronous, synchronous
from mneme.distributed.waiting import has_process
from mneme.distributed.workers import Delivery
from mneme.learner.batch import SequenceBatch
from mneme.learner.windows import cut
from mneme.rollout_workers import EvaluationError, Fragment
from tests.distributed.runs import started

pytestmark = pytest.mark.ray


def config(tmp_path: Path, *overrides: str) -> Config:
    base = [
        f"checkpoint.root={tmp_path}", "tracking.enabled=false", "env.id=mneme/Counting-v0", "rollout.num_envs=10",
        "rollout.unroll_length=23", "policy.controller.hidden_size=16", "learner.num_minibatches=2",
        "learner.bptt_length=5", "learner.num_threads=2",
    ]  # fmt: skip
    return load_config(None, [*base, *overrides])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Iterator[RayRunner]:
    """What the tests use one after the other, as actors take seconds to start; the last one to its end."""
    with started(config(tmp_path_factory.mktemp("service"))) as runner:
        yield runner


def test_the_counting_environment_arrives_in_order(service: RayRunner, tmp_path: Path) -> None:
    """Worker, object store, replay, windows: every step is where its own number says, from the very first."""
    plans = [config(tmp_path, f"learner.mode={mode}").learner.plan(23) for mode in ("cached", "truncated", "full")]
    replay: Replay[Any] = Replay(10**9, max_lag=0)
    for round_ in range(2):
        arrivals = service.collect()
        assert [a.delivery.worker for a in arrivals] == [0, 1]
        for arrival in arrivals:
            replay.add(arrival.fragment, arrival.delivery.nbytes, 0, arrival.delivery.version)
        fragments = [
            Fragment.from_arrow(batch) for batch in ray.get([held.ref for held in replay.sample(2, service.version)])
        ]
        for worker, fragment in enumerate(fragments):
            observation = fragment.observations["observation"]
            assert not observation.flags.writeable  # a view of the object store
            assert (fragment.worker == worker).all()
            np.testing.assert_array_equal(fragment.lane, worker * 5 + observation[:, 0, 1])
        batch = SequenceBatch.from_fragments(fragments, torch.device("cpu"))
        for plan in plans:
            assert_in_order(batch, round_, plan.window)


def test_an_actor_that_is_out_of_reach_for_a_while_is_waited_for(
    service: RayRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, restarts, actors = ray.get, service.fleet.restarts, list(service.fleet._actors)
    lost: list[int] = []

    def through_a_bad_network(ref: Any, **options: Any) -> Any:
        found = get(ref, **options)
        if isinstance(found, Delivery) and not lost:
            lost.append(found.worker)
            raise ActorUnavailableError("the network is cut", None)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(ray, "get", through_a_bad_network)
        (arrival,) = service.collect()
    assert {arrival.delivery.worker, *lost} == {0, 1}
    while service.fleet.num_present < 2:
        service.fleet.muster()
    assert [arrival.delivery.worker for arrival in service.collect()] == [0, 1]
    assert service.fleet._actors == actors and service.fleet.restarts == restarts


def assert_in_order(batch: SequenceBatch, round_: int, window: int) -> None:
    observations = cut(batch.observations["observation"][:, :23], window)
    resets, mask = cut(batch.resets[:, :23], window), cut(batch.valid, window)
    rewards = cut(batch.rewards, window)
    windows_per_sequence = mask.shape[1] // 10
    for w in range(mask.shape[1]):
        lane = (w // windows_per_sequence) % 5
        for k in range(window):
            if mask[k, w]:
                at = round_ * 23 + (w % windows_per_sequence) * window + k
                step, number, episode = observations[k, w].tolist()
                assert (step, number, episode) == (at % (3 + lane), lane, at // (3 + lane))
                assert bool(resets[k, w]) == (step == 0)
                assert float(rewards[k, w]) == step


def test_the_actor_that_a_synchronous_update_waits_for_is_named(
    service: RayRunner, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service.collect()
    assert notes == []
    monkeypatch.setattr(stragglers, "SECONDS", 0.0)
    monkeypatch.setattr(stragglers, "RATIO", 0.0)
    slowest = max(service.collect(), key=lambda arrival: service.fleet._idle_since[arrival.delivery.worker])
    (note,) = notes
    assert note.startswith(f"the update waits for rollout actor {slowest.delivery.worker}: it delivered after ")


def test_a_killed_actor_costs_what_it_had_in_flight(service: RayRunner, notes: list[str]) -> None:
    updates, restarts = synchronous(service, Replay(10**9, 0), patience=3), service.fleet.restarts
    first = next(updates)
    assert len(first.deliveries) == 2
    pid = ray.get(service.fleet._actors[0].__ray_call__.remote(lambda _: psutil.Process().pid))
    psutil.Process(pid).suspend()  # or it could deliver before it is killed
    for worker in service.fleet.idle:
        service.fleet.request(worker, service.learner.weights, 0)
    psutil.Process(pid).kill()
    update = next(updates)  # goes on with what arrived
    assert 1 <= len(update.deliveries) <= 2
    assert update.report.version == first.report.version + 1
    service.fleet.muster(all_of_them=True)
    update = next(updates)
    assert len(update.deliveries) == 2
    assert update.condition.restarts == restarts + 1
    assert any("rollout actor 0 was lost" in note for note in notes)


@pytest.mark.slow
def test_an_actor_that_is_idle_while_its_answer_is_missing_is_replaced(
    service: RayRunner, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a network that was cut: nothing fails, and nothing comes."""

    @ray.remote(num_cpus=0)
    def never() -> None:
        time.sleep(3600)

    monkeypatch.setattr(fleet, "_DOUBTFUL", 0.0)
    monkeypatch.setattr(doubts, "_APART", 0.2)
    service.request(1)
    requests = service.fleet._requests
    requests[never.remote()] = requests.pop(next(iter(requests)))
    service.collect()
    assert "rollout actor 1 was lost (it owes a fragment and has nothing to do" in " ".join(notes)
    service.fleet.muster(all_of_them=True)
    assert len(service.collect()) == 2


@pytest.mark.slow
def test_an_actor_that_is_stopped_is_replaced(
    service: RayRunner, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = ray.get(service.fleet._actors[1].__ray_call__.remote(lambda _: psutil.Process().pid))
    service.collect()
    psutil.Process(pid).suspend()
    monkeypatch.setattr(service.fleet, "_timeout", 8.0)
    assert [arrival.delivery.worker for arrival in service.collect()] == [0]
    assert any("rollout actor 1 was lost (it did not deliver within 8 seconds)" in note for note in notes)
    monkeypatch.undo()
    service.fleet.muster(all_of_them=True)
    assert [arrival.delivery.worker for arrival in service.collect()] == [0, 1]


def test_an_actor_that_hangs_as_it_is_built_is_replaced_and_one_that_finds_no_room_is_not(
    service: RayRunner, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs:
        def __init__(self, *_: Any) -> None:
            time.sleep(600)

        def ready(self) -> None:
            pass

    def become(actor_class: Any) -> Any:
        """The actor that takes the place of the second one, which is killed."""
        with monkeypatch.context() as patch:
            patch.setattr(fleet, "_actor_class", actor_class)
            fleet._begin_anew(1)
        return fleet._actors[1]

    def look() -> None:
        """As if it were long after."""
        with monkeypatch.context() as patch:
            patch.setattr(fleet, "_timeout", 0.0)
            fleet.wait(timeout=0)

    fleet = service.fleet
    homeless = become(ray.remote(num_cpus=1000)(Hangs))
    look(), look(), look()
    assert fleet._actors[1] is homeless
    hanging = become(ray.remote(num_cpus=0)(Hangs))
    while not has_process(hanging):
        time.sleep(0.1)
    look()
    assert fleet.present == [0]
    assert notes == []
    look()
    assert notes == ["rollout actor 1 was lost (it did not get ready within 0 seconds); a new one takes its place"]
    assert [arrival.delivery.worker for arrival in service.collect()] == [0]
    fleet.muster(all_of_them=True)


def test_an_evaluation_that_fails_for_certain_is_not_asked_for_again(
    service: RayRunner, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    restarts = service.fleet.restarts
    monkeypatch.setattr(service.fleet, "_evaluation_timeout", 1e-6)
    with pytest.raises(EvaluationError, match="episodes were finished after"):
        service.evaluate(20, seed=0)
    assert service.fleet.restarts == restarts
    assert notes == []
    assert len(service.collect()) == 2  # and the actors are at work again


def test_an_evaluation_may_take_longer_than_a_fragment(service: RayRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    restarts = service.fleet.restarts
    monkeypatch.setattr(service.fleet, "_timeout", 0.0)
    assert service.evaluate(20, seed=0).episodes == 20
    assert service.fleet.restarts == restarts


def test_an_actor_lost_in_an_evaluation_is_replaced_and_asked_once_more(service: RayRunner, notes: list[str]) -> None:
    expected, restarts = service.evaluate(20, seed=0), service.fleet.restarts
    ray.kill(service.fleet._actors[1])
    found = service.evaluate(20, seed=0)
    np.testing.assert_array_equal(found.returns, expected.returns)
    np.testing.assert_array_equal(found.digests, expected.digests)
    assert service.fleet.restarts == restarts + 1
    assert any("rollout actor 1 was lost" in note for note in notes)
    service.fleet.muster(all_of_them=True)


def test_asynchronous_service_survives_a_death(service: RayRunner, notes: list[str]) -> None:
    updates = asynchronous(service, Replay(10**9, max_lag=1))
    version, restarts = next(updates).report.version, service.fleet.restarts
    ray.kill(service.fleet._actors[1])
    for _ in range(4):
        update = next(updates)
    assert service.fleet.restarts == restarts + 1
    assert any("rollout actor 1 was lost" in note for note in notes)
    assert update.report.version >= version + 4
    service.fleet.muster(all_of_them=True)
    while service.fleet.busy:
        service.fleet.wait()


def test_an_actor_that_keeps_dying_ends_the_run_with_a_sentence(
    service: RayRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.fleet, "_max_restarts", 1)
    service.collect()
    with pytest.raises(ServiceError, match="rollout actor 1 failed 2 times in a row"):
        for _ in range(10):
            service.fleet.muster(all_of_them=True)  # one that never ran has not failed
            ray.kill(service.fleet._actors[1])
            service.collect()
