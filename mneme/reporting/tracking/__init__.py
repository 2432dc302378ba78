"""Tracking: MLflow as a second place where a run can be seen, which training never waits for.

The run's own file, metrics.jsonl, is what holds; MLflow follows it. Only this package imports MLflow, and only inside
the tracking thread or the dashboard, because the import takes seconds.
"""

from mneme.reporting.tracking.dashboard import serve_dashboard
from mneme.reporting.tracking.settings import TrackingSettings, absolute_uri
from mneme.reporting.tracking.store_run import Identity, RunStatus
from mneme.reporting.tracking.tracker import Tracker

__all__ = ["Identity", "RunStatus", "Tracker", "TrackingSettings", "absolute_uri", "serve_dashboard"]
