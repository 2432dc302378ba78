"""A node dies with its rollout actors and the fragments in its object store; the run goes on, and others join it."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.runners import FragmentsLost, ServiceError
from mneme.distributed.service import Update, asynchronous, synchronous

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

MEMORY = 200_000_000  # bytes of object store on each node


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    head = {"num_cpus": 0, "object_store_memory": MEMORY, "resources": {"learner": 1}}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    ray.shutdown()
    made.shutdown()


def add_node(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=MEMORY)


def joined(cluster: Cluster, *overrides: str) -> RayRunner:
    """A run of two actors, on which the learner keeps to the head."""
    ray.init(address=cluster.address, log_to_driver=False)
    base = [
        "rollout.num_envs=256", "env.kwargs.horizon=200", "learner.mode=cached", "learner.num_epochs=1",
        "service.learner_resource=learner",
    ]  # fmt: skip
    return RayRunner(make_blueprint(load_config(None, [*base, *overrides])))


def test_a_dead_node_costs_what_was_on_it(cluster: Cluster, notes: list[str]) -> None:
    nodes = [add_node(cluster) for _ in range(2)]
    runner = joined(cluster)
    runner.start()
    arrivals = runner.collect()
    assert len(arrivals) == 2
    for node in nodes:
        cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(FragmentsLost):
        runner.learn([arrival.fragment for arrival in arrivals])
    for _ in range(2):
        add_node(cluster)
    update = next(synchronous(runner, Replay(10**9, 0), patience=5))
    assert update.report.version == 1
    assert runner.fleet.restarts >= 2
    assert any("lost with their node" in note for note in notes)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_run_goes_on_with_those_that_are_left_and_others_join(cluster: Cluster, mode: str) -> None:
    """Those that can be placed nowhere are no failures, however long it takes."""
    nodes = [add_node(cluster) for _ in range(2)]
    runner = joined(cluster, f"service.mode={mode}", "service.max_restarts=1")
    runner.start()
    replay: Replay[Any] = Replay(10**9, max_lag=0 if mode == "sync" else 1)
    updates = synchronous(runner, replay, patience=5) if mode == "sync" else asynchronous(runner, replay)
    assert next(updates).condition.workers == 2
    cluster.remove_node(nodes[0], allow_graceful=False)
    fewer = [next(updates) for _ in range(8)]
    assert fewer[-1].condition.workers == 1
    assert fewer[-1].report.steps == 128 * 201
    states = runner.state().workers
    assert [state is None for state in states].count(True) == 1
    assert runner.evaluate(20, seed=0).episodes >= 20
    add_node(cluster)
    update = until(updates, workers=2)
    assert update.condition.workers == 2
    assert runner.fleet.restarts == 1
    taken = update.steps
    assert taken.collected == sum(taken[1:])


def test_a_learner_whose_node_dies_begins_anew_on_another(cluster: Cluster, notes: list[str]) -> None:
    """Its newest weights were on that node; no rollout actor is to blame."""

    def learner_node() -> Any:
        return cluster.add_node(num_cpus=0, object_store_memory=MEMORY, resources={"apart": 1})

    add_node(cluster), add_node(cluster)
    node = learner_node()
    runner = joined(cluster, "service.learner_resource=apart", "policy.controller.hidden_size=256")
    runner.start()
    updates = synchronous(runner, Replay(10**9, 0), patience=3)
    assert next(updates).report.version == 1
    cluster.remove_node(node, allow_graceful=False)
    learner_node()
    update = next(updates)
    assert update.report.version == 2
    assert (update.condition.restarts, update.condition.learner_restarts) == (0, 1)
    assert update.steps.trained == update.steps.collected
    assert any("it begins anew from its last state" in note for note in notes)


def until(updates: Iterator[Update], workers: int) -> Update:
    """The first update with so many workers, and fragments of all of them."""
    for update in updates:
        if update.condition.workers == workers and update.report.steps == workers * 128 * 201:
            return update
    raise AssertionError


def test_a_run_waits_for_the_fewest_it_asks_for_and_not_for_ever(cluster: Cluster, notes: list[str]) -> None:
    node = add_node(cluster)
    runner = joined(cluster, "rollout.min_workers=1", "service.wait_for_resources=12")
    runner.start()
    updates = synchronous(runner, Replay(10**9, 0), patience=5)
    assert next(updates).condition.workers == 1  # begun with one of two
    cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(ServiceError, match=r"1 of the 1 rollout actors .* did not start within 12 seconds .*1 CPU for"):
        for _ in range(3):
            next(updates)
    assert any("waiting for 1 of the 1 rollout actors that the run waits for, 10 s" in note for note in notes)


def test_what_a_cluster_lacks_for_the_learner_is_said(cluster: Cluster) -> None:
    runner = joined(cluster, "service.learner_resource=accelerator", "service.wait_for_resources=2")
    with pytest.raises(
        ServiceError, match=r"the learner did not start within 2 seconds .*1 accelerator for each, of 0"
    ):
        runner.start()
