"""A run over Ray exports its newest row where Prometheus finds it."""

import json
import math
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import ClassVar

import pytest
import ray

from mneme.callbacks import Callback, Progress
from mneme.configuration.config import load_config
from mneme.distributed import ray_metrics
from mneme.distributed.ray_metrics import GAUGES, RayMetrics, exported_name
from mneme.training import train

PATIENCE = 60  # seconds; Ray collects from its processes every ten


class Scrapes(Callback):
    """After the second update waits until the exporter shows it."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self.row: dict[str, float] = {}

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        if progress.update != 2:
            return
        self.row = dict(metrics)
        until = time.monotonic() + PATIENCE
        while self.seen.get("ray_mneme_weights_version") != 2 and time.monotonic() < until:
            time.sleep(0.5)
            self.seen = exported("run")


def exported(run: str) -> dict[str, float]:
    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    ours = [line for line in lines if line.startswith("ray_mneme_") and f'run="{run}"' in line]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in ours}


class NotedGauge:
    """A gauge that only keeps what it is set to."""

    values: ClassVar[dict[str, list[float]]] = {}
    often = Event()

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self._values = self.values.setdefault(name, [])

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tags == {"run": "a"}
        self._values.append(value)
        if len(self._values) > 3:
            self.often.set()


def test_what_was_measured_is_set_again_until_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_metrics, "Gauge", NotedGauge)
    monkeypatch.setattr(ray_metrics, "INTERVAL", 0.01)
    metrics = RayMetrics("a")
    metrics.export({"lag": 1.0, "wait/learner": 2.0, "staleness": math.nan, "kl": 3.0})
    assert NotedGauge.often.wait(60)
    metrics.close()
    values = {name: list(seen) for name, seen in NotedGauge.values.items() if seen}
    assert {name: set(seen) for name, seen in values.items()} == {"mneme_lag": {1.0}, "mneme_wait_learner": {2.0}}
    assert not metrics._thread.is_alive()


@pytest.mark.ray
@pytest.mark.usefixtures("undrawn", "cluster")
def test_a_run_exports_the_row_of_its_newest_update(tmp_path: Path) -> None:
    scrapes = Scrapes()
    small = [
        f"checkpoint.root={tmp_path}", "name=run", "tracking.enabled=false", "rollout.num_envs=8",
        "rollout.num_workers=1", "rollout.unroll_length=6", "env.kwargs.horizon=6", "train.total_timesteps=96",
        "train.evaluation_episodes=8", "learner.num_minibatches=1", "learner.num_threads=1",
        "policy.controller.hidden_size=8",
    ]  # fmt: skip
    run = train(load_config(None, small), callbacks=[scrapes], progress=False)
    assert scrapes.seen.keys() <= {f"ray_{exported_name(key)}" for key in GAUGES}
    measured = {key for key in GAUGES if math.isfinite(scrapes.row.get(key, math.nan))}
    assert {f"ray_{exported_name(key)}": scrapes.row[key] for key in measured} == pytest.approx(scrapes.seen)
    assert {"steps_per_second", "lag", "replay_bytes", "steps/in_flight", "wait/workers", "workers"} <= measured
    written = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (row,) = [row for row in written if row.get("weights_version") == 2]
    assert row["steps_per_second"] == scrapes.seen["ray_mneme_steps_per_second"]
