"""The object store of a node, where fragments wait."""

import pytest
import ray
from ray.cluster_utils import Cluster

from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.service import asynchronous

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_an_object_store_that_is_too_small_spills_and_the_run_goes_on() -> None:
    """Fragments of several updates are far larger together than the store."""
    store = 80_000_000
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": store})
    ray.init(address=made.address, log_to_driver=False)
    try:
        overrides = [
            "service.mode=async", "service.max_lag=4", "rollout.num_envs=512", "env.kwargs.horizon=200",
            "learner.mode=cached", "learner.carry_source=stored", "learner.num_epochs=1",
            "policy.controller.hidden_size=128",
        ]  # fmt: skip
        blueprint = make_blueprint(load_config(None, overrides))
        assert 2 * blueprint.fragment_bytes(blueprint.policy()) > store / 2
        runner = RayRunner(blueprint)
        runner.start()
        updates = asynchronous(runner, Replay(1 << 30, max_lag=4))
        last = [next(updates) for _ in range(4)][-1]
        assert last.report.version == 4
        assert last.steps.refused == 0
        runner.close()
    finally:
        ray.shutdown()
        made.shutdown()
