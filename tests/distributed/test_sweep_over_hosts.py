"""A sweep on a cluster of two hosts: its trials run wherever there is room."""

import json
import sys
from pathlib import Path

import pytest

from tests.distributed.namespaces import hosts, places_of_actors, ray_environment, start_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
FILE = """
env: {id: mneme/Counting-v0}
rollout: {num_envs: 4, num_workers: 1, unroll_length: 10}
policy: {controller: {hidden_size: 4}}
learner: {num_minibatches: 1}
train: {total_timesteps: 4000, evaluation_episodes: 4}
service: {address: auto}
tracking: {enabled: false}
sweep:
  space:
    learner.gamma: [0.7, 0.8, 0.9, 0.95]
"""


def test_trials_run_on_both_hosts_and_their_results_come_together(tmp_path: Path) -> None:
    (tmp_path / "gammas.yaml").write_text(FILE)
    with hosts(tmp_path / "hosts", "head", "node") as network:
        head, node = network["head"], network["node"]
        environment = {**ray_environment(tmp_path), "PYTHONPATH": str(ROOT)}
        start_ray(head, environment, cpus=1)
        start_ray(node, environment, head=head, cpus=1)
        swept = head.run(sys.executable, "-m", "mneme", "sweep", "gammas", env=environment, cwd=tmp_path)
        assert "[4 of 4] " in swept.stdout
        assert {head.address, node.address} in places_of_actors(head, environment).values()
    trials = json.loads((tmp_path / "runs" / "sweeps" / "gammas" / "results.json").read_text())["trials"]
    assert [trial["outcome"] for trial in trials] == ["complete"] * 4
