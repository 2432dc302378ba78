"""A node dies with its rollout actors and the fragments in its object store; the run goes on when another one comes."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.runners import FragmentsLost
from mneme.distributed.service import synchronous

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MEMORY = 200_000_000  # bytes of object store on each node


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    head = {"num_cpus": 0, "object_store_memory": MEMORY, "resources": {"learner": 1}}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_dead_node_costs_what_was_on_it(cluster: Cluster, notes: list[str]) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
    ray.init(address=cluster.address, log_to_driver=False)
    overrides = ["rollout.num_envs=256", "env.kwargs.horizon=200", "learner.mode=cached", "learner.num_epochs=1"]
    overrides.append("service.learner_resource=learner")  # or the learner may be on the node that dies
    runner = RayRunner(make_blueprint(load_config(None, overrides)))
    runner.start()
    arrivals = runner.collect()
    assert len(arrivals) == 2
    cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(FragmentsLost):
        runner.learn([arrival.fragment for arrival in arrivals])
    cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
    update = next(synchronous(runner, Replay(10**9, 0), patience=5))
    assert update.report.version == 1
    assert runner.fleet.restarts >= 2
    assert any("lost with their node" in note for note in notes)
