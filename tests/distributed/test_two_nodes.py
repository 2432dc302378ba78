"""Two hosts and the network between them as one Ray: the learner on one, the rollout actors on the other."""

import sys
from pathlib import Path

import pytest

from tests.distributed.namespaces import hosts, places_of_actors, ray_environment, start_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TRAIN = [
    sys.executable, "-m", "mneme", "train", "configs/delayed_cue.yaml", "env.kwargs.horizon=6", "rollout.num_envs=16",
    "rollout.num_workers=2", "train.total_timesteps=448", "train.evaluation_episodes=16", "tracking.enabled=false",
    "service.learner_resource=learner", "policy.controller.hidden_size=16", "name=run",
]  # fmt: skip


def test_a_run_trains_over_two_hosts(tmp_path: Path) -> None:
    with hosts(tmp_path / "hosts", "head", "node") as network:
        head, node = network["head"], network["node"]
        environment = ray_environment(tmp_path)
        start_ray(head, environment, cpus=0, resources='{"learner": 1}')
        start_ray(node, environment, head=head, cpus=2)
        trained = head.run(*TRAIN, f"checkpoint.root={tmp_path}", "service.address=auto", env=environment, cwd=ROOT)
        assert "done at step 448" in trained.stdout
        places = places_of_actors(head, environment)
        assert places == {"LearnerReplica": {head.address}, "RolloutWorker": {node.address}}
