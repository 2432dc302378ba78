"""Tracking: MLflow as a second place where a run can be seen, which training never waits for.

The run's own file, metrics.jsonl, is what holds; MLflow follows it. Only this package imports MLflow, and only inside
the tracking thread or the dashboard, because the import takes seconds.
"""
