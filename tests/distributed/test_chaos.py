"""Processes are killed and stopped at random while a run learns its task, until it has."""

import json
import os
import random
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from mneme.callbacks import Callback, Outcome, Progress, RunStart
from mneme.configuration.config import load_config
from mneme.distributed.blueprint import make_blueprint
from mneme.distributed.ray_runner import RayRunner
from mneme.distributed.replay import Replay
from mneme.distributed.service import asynchronous
from mneme.training import train

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EVERY = 3.0  # seconds from one deed to the next, at least: there is an update in between
DEEDS = [(signal.SIGKILL, "RolloutWorker")] * 3 + [
    (signal.SIGKILL, "LearnerReplica"),
    (signal.SIGSTOP, "RolloutWorker"),
]


class Chaos(Callback):
    """Does something to one of this process's actors again and again, until the run ends."""

    def __init__(self, seed: int) -> None:
        self.done: list[str] = []
        self._rng, self._over, self._updated = random.Random(seed), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def on_start(self, run: RunStart) -> None:
        self._thread.start()

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._updated.set()

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        self._over.set()
        self._updated.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._over.wait(EVERY):
            deed, kind = self._rng.choice(DEEDS)
            victims = [process for process in psutil.Process().children(recursive=True) if is_a(kind, process)]
            if victims:
                with suppress(ProcessLookupError):
                    os.kill(self._rng.choice(victims).pid, deed)
                    self.done.append(f"{deed.name} {kind}")
            self._updated.clear()
            self._updated.wait()


def is_a(kind: str, process: psutil.Process) -> bool:
    try:
        return f"ray::{kind}" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_STOPPED
    except psutil.Error:
        return False


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.usefixtures("cluster")
def test_a_run_learns_its_task_whatever_dies(tmp_path: Path, mode: str) -> None:
    config = load_config(
        None,
        [
            f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", f"service.mode={mode}",
            "env.kwargs={horizon: 32, cues: 4}", "rollout.num_envs=256", "rollout.num_workers=4",
            "learner.gae_lambda=0", "learner.num_threads=1", "train.total_timesteps=2000000",
            "train.stop_success=0.99", "service.collect_timeout=15", "service.max_restarts=50",
            "service.worker_cpus=0.1", "checkpoint.every=50000",
        ],
    )  # fmt: skip
    chaos = Chaos(seed=0)
    run = train(config, callbacks=[chaos])
    done = chaos.done
    assert len(done) >= 8, done
    assert {deed.split()[1] for deed in done} == {"RolloutWorker", "LearnerReplica"}
    assert run.evaluation is not None
    assert (run.evaluation.success_rate or 0) >= 0.99
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if "workers" in row]
    assert updates[-1]["learner_restarts"] >= 1
    assert updates[-1]["worker_restarts"] >= 3
    assert [row["weights_version"] for row in updates] == list(range(1, len(updates) + 1))
    for row in updates:
        gone = sum(row[f"steps/{name}"] for name in ("trained", "refused", "dropped_stale", "dropped_full"))
        assert row["steps/collected"] == gone + row["steps/in_flight"]
    assert updates[-1]["steps/trained"] == run.steps
    if mode == "sync":  # every step exactly once
        assert updates[-1]["steps/collected"] == run.steps + updates[-1]["steps/refused"]


def test_an_object_store_that_is_too_small_spills_and_the_run_goes_on(tmp_path: Path) -> None:
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
