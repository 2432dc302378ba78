"""Processes are killed and stopped at random while a run learns its task, until it has."""

import random
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from mneme.callbacks import Callback, Outcome, Progress, RunStart
from mneme.configuration.config import load_config
from mneme.training import train
from tests.distributed.runs import actors, assert_accounted, updates

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

EVERY = 3.0  # seconds from one deed to the next, at least: there is an update in between
LASTS = 80.0  # seconds for the run at least, held back where it is faster: time for a dozen deeds
STEPS = 150_000
KILLED, STOPPED = signal.SIGKILL, signal.SIGSTOP
DEEDS = [*[(KILLED, "RolloutWorker")] * 3, (KILLED, "LearnerReplica"), (STOPPED, "RolloutWorker")]


class Chaos(Callback):
    """Does something to one of this process's actors again and again, until the run ends."""

    def __init__(self, seed: int) -> None:
        self.done: list[str] = []
        self._rng, self._over, self._updated = random.Random(seed), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._go_on)

    def on_start(self, run: RunStart) -> None:
        self._began = monotonic()
        self._thread.start()

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        self._updated.set()
        sleep(max(0.0, self._began + LASTS * progress.steps / STEPS - monotonic()))

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        self._over.set()
        self._updated.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._over.wait(EVERY):
            deed, kind = self._rng.choice(DEEDS)
            victims = actors(kind)
            if victims:
                with suppress(psutil.NoSuchProcess):
                    self._rng.choice(victims).send_signal(deed)
                    self.done.append(f"{deed.name} {kind}")
            self._updated.clear()
            if not self._over.is_set():
                self._updated.wait()


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.usefixtures("cluster")
def test_a_run_learns_its_task_whatever_dies(tmp_path: Path, mode: str) -> None:
    config = load_config(
        None,
        [
            f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", f"service.mode={mode}",
            "env.kwargs={horizon: 12, cues: 4}", "rollout.num_envs=64", "rollout.num_workers=4",
            "learner.gae_lambda=0", "learner.num_threads=1", f"train.total_timesteps={STEPS}",
            "service.collect_timeout=8", "service.max_restarts=50",
            "service.worker_cpus=0.1", "checkpoint.every=50000",
        ],
    )  # fmt: skip
    chaos = Chaos(seed=0)
    run = train(config, callbacks=[chaos])
    done = chaos.done
    assert len(done) >= 8, done
    assert {deed.split()[1] for deed in done} == {"RolloutWorker", "LearnerReplica"}
    rows = updates(run.folder)
    assert max(row.get("success", 0) for row in rows) >= 0.99
    assert rows[-1]["learner_restarts"] >= 1
    assert rows[-1]["worker_restarts"] >= 3
    assert [row["weights_version"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        assert_accounted(row)
    assert rows[-1]["steps/trained"] == run.steps
    if mode == "sync":  # every step exactly once
        assert rows[-1]["steps/collected"] == run.steps + rows[-1]["steps/refused"]
