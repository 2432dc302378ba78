"""A run's record in MLflow, as the run's callback."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mneme.callbacks import Callback, Outcome, Progress, RunStart
from mneme.configuration.config import Config
from mneme.distributed.blueprint import Blueprint
from mneme.reporting.tracking.store_run import Identity, RunStatus
from mneme.reporting.tracking.tracker import Tracker
from mneme.storage.run_folder import RunFolder

_STATUS: Mapping[Outcome, RunStatus] = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Tracking(Callback):
    """Opens the run in the store in the background, lets it follow the run's own file, and adds what lies beside it."""

    def __init__(self) -> None:
        self._tracker: Tracker | None = None
        self._resumed = False

    def on_start(self, run: RunStart) -> None:
        """Open the run."""
        self._folder, self._resumed = RunFolder(run.folder), run.resumed
        self._tracker = Tracker(
            run.config.tracking,
            Identity(run.key, run.folder.resolve(), run.resumed),
            params=_parameters(run.blueprint),
        )
        self._tracker.artifact(self._folder.config)

    def on_begin(self, progress: Progress) -> None:
        """Follow the metrics, from which nothing is removed any more."""
        if self._tracker is not None:
            self._tracker.follow(self._folder.metrics, progress.steps if self._resumed else None)

    def on_checkpoint(self, progress: Progress, path: Path) -> None:
        """Keep a copy."""
        if self._tracker is not None:
            self._tracker.artifact(path, "checkpoints")

    def on_unrecorded(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Record what the file lacks."""
        if self._tracker is not None:
            self._tracker.log(metrics, progress.steps)

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        """Send what is left, and the verdict."""
        if self._tracker is not None:
            if self._folder.curve.exists():
                self._tracker.artifact(self._folder.curve)
            self._tracker.close(_STATUS[outcome])


def _parameters(blueprint: Blueprint[Config]) -> dict[str, Any]:
    """The resolved configuration, and what was derived from the environment, for tracking."""
    spec = blueprint.spec
    derived = {
        "horizon": blueprint.horizon,
        "observations": {name: str(part) for name, part in spec.observations.items()},
        "actions": str(spec.actions),
    }
    return blueprint.config.to_dict() | {"derived": derived}
