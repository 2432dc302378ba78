"""A run's record in MLflow, as the run's callback."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mneme.callbacks import Callback, Look, Outcome, Progress, RunStart
from mneme.configuration.config import Config
from mneme.distributed.blueprint import Blueprint
from mneme.reporting.meter import describe_evaluation
from mneme.reporting.tracking.model import ModelForm, form_of
from mneme.reporting.tracking.store_run import BEST, LAST, Identity, RunStatus
from mneme.reporting.tracking.story import Story, tags_of, told
from mneme.reporting.tracking.tracker import Tracker
from mneme.rollout_workers import Evaluation
from mneme.storage.checkpoint import step_of
from mneme.storage.retention import Best
from mneme.storage.run_folder import RunFolder

_log = logging.getLogger(__name__)

_PASSWORD = (
    "the password in tracking.uri is kept in no file: to go on with this run, set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or what the database's own driver reads, such as PGPASSWORD"
)
_STATUS: Mapping[Outcome, RunStatus] = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Tracking(Callback):
    """Opens the run in the store in the background, lets it follow the run's own file, and adds what lies beside it."""

    def __init__(self) -> None:
        self._tracker: Tracker | None = None
        self._resumed = False
        self._form: ModelForm | None = None
        self._best: Best | None = None  # of the evaluations so far
        self._checkpoint: Path | None = None  # the newest
        self._offered: int | None = None  # step of the newest model
        self._story: Story | None = None

    def on_start(self, run: RunStart) -> None:
        """Open the run."""
        self._folder, self._resumed = RunFolder(run.folder), run.resumed
        if run.config.tracking.enabled:
            self._form = _form(run.blueprint)
            if run.config.without_password() != run.config:
                _log.info(_PASSWORD)
        self._tracker = Tracker(
            run.config.tracking,
            Identity(run.key, run.folder.resolve(), run.resumed),
            params=_parameters(run.blueprint),
            tags=tags_of(run.blueprint),
        )
        self._story = told(run.blueprint, run.folder.name)._replace(model=self._form is not None)
        if not self._resumed:
            self._tell()
        self._tracker.artifact(self._folder.config)

    def on_begin(self, progress: Progress) -> None:
        """Follow the metrics, from which nothing is removed any more."""
        if self._resumed:
            self._best = Best.among(self._folder.history())
            best = "" if self._best is None else f"; the best evaluation so far was at step {self._best.step:,}"
            self._tell(how_far=f"Gone on with at step {progress.steps:,}{best}.")
        if self._tracker is not None:
            self._tracker.follow(self._folder.metrics, progress.steps if self._resumed else None)

    def on_checkpoint(self, progress: Progress, path: Path) -> None:
        """Keep a copy, and of the best the agent as a model."""
        if self._tracker is not None:
            self._tracker.artifact(path, "checkpoints")
        self._checkpoint = path
        self._offer_best()

    def on_evaluation(self, progress: Progress, evaluation: Evaluation, look: Look) -> None:
        """Tell how far the run is, and keep the agent as a model if it is the best so far."""
        self._tell(how_far=_how_far(progress, evaluation, look))
        if look is not Look.CONFIRMATION:
            self._best = Best.of(progress.steps, evaluation, self._best)
            self._offer_best()

    def on_unrecorded(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Record what the file lacks."""
        if self._tracker is not None:
            self._tracker.log(metrics, progress.steps)

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        """Send what is left, and the verdict."""
        if self._tracker is not None:
            if self._folder.curve.exists():
                self._tracker.artifact(self._folder.curve)
                self._tell(curve=True)
            if outcome == "complete":
                self._offer(LAST)
            self._tracker.close(_STATUS[outcome])

    def _tell(self, **news: Any) -> None:
        if self._tracker is not None and self._story is not None:
            self._story = self._story._replace(**news)
            self._tracker.tell(self._story)

    def _offer_best(self) -> None:
        """Add the newest checkpoint's agent, if the best evaluation is of it; either may come first."""
        if self._best is not None and self._checkpoint is not None and self._best.step == step_of(self._checkpoint):
            self._offer(BEST)

    def _offer(self, name: str) -> None:
        if self._tracker is None or self._form is None or self._checkpoint is None:
            return
        step = step_of(self._checkpoint)
        if step != self._offered:
            self._tracker.model(name, self._checkpoint, self._form)
            self._offered = step


def _how_far(progress: Progress, evaluation: Evaluation, look: Look) -> str:
    name = {Look.EVALUATION: "Evaluated", Look.CONFIRMATION: "Confirmed", Look.RESULT: "Result"}[look]
    return f"**{name} at step {progress.steps:,}**: {describe_evaluation(evaluation)} (95 % intervals)."


def _form(blueprint: Blueprint[Config]) -> ModelForm | None:
    try:
        return form_of(blueprint)
    except ValueError as error:
        _log.warning(f"the agent is kept in MLflow as checkpoints, not as a model: {error}")
        return None


def _parameters(blueprint: Blueprint[Config]) -> dict[str, Any]:
    """The resolved configuration, and what was derived from the environment, for tracking."""
    spec = blueprint.spec
    derived = {
        "horizon": blueprint.horizon,
        "observations": {name: str(part) for name, part in spec.observations.items()},
        "actions": str(spec.actions),
    }
    return blueprint.config.without_password().to_dict() | {"derived": derived}
