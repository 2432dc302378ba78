"""Two hosts and the network between them as one Ray: the learner on one, rollout actors on the other or on both."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.namespaces import PORT, hosts, places_of_actors, ray_environment, start_ray
from tests.distributed.runs import assert_accounted

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

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


def rows(folder: Path) -> list[dict[str, float]]:
    """The whole lines of its metrics so far, of updates alone."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [row for line in lines if line.endswith("\n") and "workers" in (row := json.loads(line))]


def wait_until(true: Callable[[], bool], log: Path, within: float = 150.0) -> float:
    """Seconds until it is."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within, log.read_text()
        time.sleep(0.2)
    return time.monotonic() - began


@pytest.mark.parametrize(("mode", "seconds"), [("sync", 30), ("async", 30), ("sync", 90), ("async", 90)])
def test_a_run_goes_on_through_a_network_that_is_cut_and_restored(tmp_path: Path, mode: str, seconds: float) -> None:
    """For so long that Ray notices nothing, or that it takes the node for dead, so that it has to join anew."""
    log, folder = tmp_path / "log", tmp_path / "run"

    def workers() -> float:
        return rows(folder)[-1]["workers"] if rows(folder) else 0

    with hosts(tmp_path / "hosts", "head", "node") as network:
        head, node = network["head"], network["node"]
        environment = ray_environment(tmp_path)
        start_ray(head, environment, cpus=1, resources='{"learner": 1}')
        start_ray(node, environment, head=head, cpus=1)
        words = [f"checkpoint.root={tmp_path}", "service.address=auto", f"service.mode={mode}", "service.max_lag=4"]
        words += ["train.total_timesteps=100000000", "train.stop_success=null", "service.max_restarts=2"]
        run = head.start(*TRAIN, *words, log=log, env=environment, cwd=ROOT)
        wait_until(lambda: workers() == 2, log)
        node.unplug()
        time.sleep(seconds / 2)
        before = len(rows(folder))
        time.sleep(seconds / 2)
        if mode == "async" or seconds > 60:
            assert len(rows(folder)) > before
        node.plug()
        before = len(rows(folder))
        wait_until(lambda: len(rows(folder)) > before + 5, log)
        if seconds > 60:
            assert workers() == 1
            wait_until(lambda: not any("raylet" in process for process in node.processes()), log)
            start_ray(node, environment, head=head, cpus=1)
        wait_until(lambda: workers() == 2, log)
        head.run("pkill", "-TERM", "-f", "mneme train")
        assert run.wait(60) == 130, log.read_text()
    seen = rows(folder)
    assert seen[-1]["worker_restarts"] == (seconds > 60)
    for row in seen:
        assert_accounted(row)
    if mode == "sync":
        assert seen[-1]["steps/collected"] == seen[-1]["steps/trained"] + seen[-1]["steps/refused"]


KNOCK = """
import sys, urllib.error, urllib.request
for port in (8265, 52365):
    url = f"http://{sys.argv[1]}:{port}/api/job_agent/jobs/"
    try:
        urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"), timeout=20)
        print("open")
    except urllib.error.HTTPError as error:
        print(error.code)
    except urllib.error.URLError as error:
        print(error.reason.strerror)
"""


def test_a_host_without_the_token_gets_nowhere_and_is_told_what_it_may_lack(tmp_path: Path) -> None:
    with hosts(tmp_path / "hosts", "head", "stranger") as network:
        head, stranger = network["head"], network["stranger"]
        start_ray(head, ray_environment(tmp_path))
        knocked = stranger.run(sys.executable, "-c", KNOCK, head.address).stdout.splitlines()
        assert knocked == ["Connection refused", "401"], "the dashboard; the node's agent, which takes jobs, too"
        joined = stranger.run(
            *TRAIN, f"checkpoint.root={tmp_path}", f"service.address={head.address}:{PORT}", cwd=ROOT, check=False
        )
        assert joined.returncode == 1
        assert "if the cluster asks for a token, set RAY_AUTH_MODE=token" in joined.stderr
        assert not (tmp_path / "run").exists()
