"""The metrics of a run as Ray exports them, for Prometheus to scrape on the driver's node."""

import math
from collections.abc import Mapping
from threading import Event, Thread

from ray.util.metrics import Gauge

INTERVAL = 5.0  # seconds after which values are set again

GAUGES = {
    "steps_per_second": "environment steps trained on per second",
    "weights_version": "updates so far",
    "return": "mean return of the episodes that training finished",
    "success": "share of these that succeeded",
    "lag": "weights versions between acting and learning, mean over fragments",
    "lag_max": "the largest of these",
    "staleness": "relative error of the recurrent states that were stored",
    "replay_bytes": "bytes of fragments that wait in the replay",
    "steps/in_flight": "environment steps in the replay, or with the learner",
    "steps/trained": "environment steps trained on",
    "steps/refused": "environment steps that the learner could not use",
    "steps/dropped_stale": "environment steps thrown away as they were too old",
    "steps/dropped_full": "environment steps thrown away for want of room",
    "wait/workers": "seconds that rollout actors waited since the update before, mean",
    "wait/learner": "seconds that the learner waited for fragments since the update before",
    "wait/driver_for_workers": "seconds that the driver waited for fragments since the update before",
    "wait/driver_for_learner": "seconds that the driver waited for updates since the update before",
    "workers": "rollout actors that are there",
    "worker_restarts": "rollout actors that were lost and replaced",
    "learner_restarts": "times that the learner was lost and began anew",
}
"""The keys of metrics.jsonl that are exported, and what Prometheus is told about them."""


def exported_name(key: str) -> str:
    """The name of a metric as it is given to Ray, which puts `ray_` before it."""
    return "mneme_" + key.replace("/", "_")


class RayMetrics:
    """A gauge for each of `GAUGES`, set again and again, as Ray forgets within half a minute what is not.

    Args:
        run: the run's name, which every value carries as the tag `run`.
    """

    def __init__(self, run: str) -> None:
        self._tags = {"run": run}
        self._gauges = {key: Gauge(exported_name(key), what, ("run",)) for key, what in GAUGES.items()}
        self._row: Mapping[str, float] = {}
        self._closed = Event()
        self._thread = Thread(target=self._keep, name="mneme-metrics", daemon=True)
        self._thread.start()

    def export(self, row: Mapping[str, float]) -> None:
        """Show these values from now on, but for those that were not measured."""
        self._row = {key: row[key] for key in GAUGES if math.isfinite(row.get(key, math.nan))}
        self._set()

    def close(self) -> None:
        """Let Ray forget them."""
        self._closed.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._closed.wait(INTERVAL):
            self._set()

    def _set(self) -> None:
        for key, value in self._row.items():
            self._gauges[key].set(value, self._tags)
