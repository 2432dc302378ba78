"""Metrics of a run that trains with Ray, handed on to Ray's own exporter."""

from collections.abc import Mapping

from mneme.callbacks import Callback, Outcome, Progress, RunStart


class RayExport(Callback):
    """Has every update's row exported; see `mneme.distributed.ray_metrics`."""

    def on_start(self, run: RunStart) -> None:
        """Begin."""
        from mneme.distributed.ray_metrics import RayMetrics  # only here: a local run needs no Ray

        self._metrics = RayMetrics(run.folder.name)

    def on_update(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Export it."""
        self._metrics.export(metrics)

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        """End."""
        self._metrics.close()
