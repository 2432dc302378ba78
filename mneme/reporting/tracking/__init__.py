"""Tracking: MLflow as a second place where a run can be seen, which training never waits for.

The run's own file, metrics.jsonl, is what holds; MLflow follows it. Only this package imports MLflow, and only inside
the tracking thread, the dashboard, and where an agent is named by MLflow's address, because the import takes seconds.
"""
