"""Tracking: MLflow as a second place where a run can be seen, which training never waits for.

The run's own file, metrics.jsonl, is what holds; MLflow follows it. Only this package imports MLflow, and only inside
the tracking thread or the dashboard, because the import takes seconds.
"""

from distributed.tracking.dashboard import serve_dashboard
from distributed.tracking.settings import TrackingSettings, absolute_uri
from distributed.tracking.store_run import Identity, RunStatus
from distributed.tracking.tracker import Tracker

__all__ = ["Identity", "RunStatus", "Tracker", "TrackingSettings", "absolute_uri", "serve_dashboard"]
