"""Learner replicas on two nodes: spread over both or packed onto one, each with a fragment of its own."""

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from mneme.configuration.config import load_config
from tests.distributed.runs import started

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NODE = {"num_cpus": 2, "object_store_memory": 200_000_000}


@pytest.fixture
def cluster() -> Iterator[None]:
    made = Cluster(initialize_head=True, head_node_args=NODE)
    made.add_node(**NODE)
    ray.init(address=made.address, log_to_driver=False)
    yield
    ray.shutdown()
    made.shutdown()


@pytest.mark.usefixtures("cluster")
def test_replicas_lie_where_the_settings_say_and_leave_nothing_behind() -> None:
    for placement, nodes in (("spread", 2), ("packed", 1)):
        overrides = ["learner.replicas=2", f"service.learner_placement={placement}", "env.kwargs.horizon=8"]
        with started(load_config(None, overrides)) as runner:
            actors = runner.learner.actors
            places = [each.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()) for each in actors]
            assert len(set(ray.get(places))) == nodes
            fragments = [arrival.fragment for arrival in runner.collect()]
            assert runner.learn(fragments).version == 1
        table = ray.util.placement_group_table(runner.learner._learners._placement)
        assert table["state"] == "REMOVED"
