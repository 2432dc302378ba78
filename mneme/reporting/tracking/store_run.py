"""One run in an MLflow store: found again or made, described, filled in, ended.

Every method calls the store and may raise. Only the tracking thread is here, as MLflow is imported.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from mneme.reporting.tracking.client import client_of
from mneme.reporting.tracking.database import database_of, delete_metrics
from mneme.reporting.tracking.groups import stored_name
from mneme.reporting.tracking.model import ModelForm, log_model, register
from mneme.reporting.tracking.names import NAME_CHARACTERS, TAG_CHARACTERS, clean_name, clean_text
from mneme.reporting.tracking.parents import CHILD_TAG, parent_of
from mneme.reporting.tracking.settings import TrackingSettings, sqlite_file
from mneme.reporting.tracking.story import NOTE, Story
from mneme.reporting.tracking.uploads import upload
from mneme.storage.checkpoint import step_of

RunStatus = Literal["FINISHED", "KILLED", "FAILED"]

SYSTEM_METRICS_SECONDS = 5.0
ENTRIES_PER_BATCH = 100  # parameters or tags; MLflow refuses more
METRICS_PER_BATCH = 1000

_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow may take it for one of language models
_KEY_TAG = "mneme.run"  # the run's own key, by which it is found again
_FOLDER_TAG = "mneme.folder"
_SYSTEM = "system/"  # metrics of MLflow's own monitor
_EVALUATION = "evaluation/"  # before the names of metrics of an evaluation

BEST, LAST = "best", "last"
"""Models of a run: of the best evaluation, and of its end where that is another one."""

EMPTY: Mapping[str, str] = MappingProxyType({})

logger = logging.getLogger("mneme")


class Identity(NamedTuple):
    """The identity of a run, by which it differs from all others."""

    key: str  # made when it began, and kept in its checkpoints
    folder: Path  # full; a copy of a run's folder is another run
    resumed: bool


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float  # finite
    time_ms: int  # since the epoch
    step: int


class StoreRun:
    """A run, running from now on.

    Args:
        settings: the store, the experiment and the run's name.
        identity: by which it is found, if the store has it.
    """

    def __init__(self, settings: TrackingSettings, identity: Identity) -> None:
        self._settings, self._identity = settings, identity
        file = sqlite_file(settings.uri)
        self._artifacts = (file.parent / "mlartifacts").as_uri() if file else None  # else the server decides
        self._client = client_of(settings.uri)
        self._experiment_id = self._experiment()
        run = self._found()
        if run is None and identity.resumed:
            logger.warning(
                "MLflow's experiment %s does not have this run: a new one is begun, and filled in from metrics.jsonl.",
                settings.experiment,
            )
        self._params = self._tags = EMPTY
        self._evaluations: dict[int, list[Point]] = {}  # by step, under names that MLflow takes
        self._begun_anew = False  # and not described yet
        self._take(run)

    def _take(self, run: Any) -> None:
        """Go on with a run of the store, or with a new one."""
        if run is None:
            name = clean_text(self._settings.run_name or self._identity.folder.name, NAME_CHARACTERS)
            tags = {_KEY_TAG: self._identity.key, _FOLDER_TAG: clean_text(str(self._identity.folder), TAG_CHARACTERS)}
            if self._settings.parent is not None:
                tags[CHILD_TAG] = parent_of(self._client, self._experiment_id, self._settings.parent)
            run = self._client.create_run(self._experiment_id, run_name=name, tags=tags)
            self._continued = False
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._continued = True
        self._run = run
        self.id: str = run.info.run_id
        self._known_params: Mapping[str, str] = run.data.params
        self._monitor: Any = None

    def _experiment(self) -> str:
        """The experiment of the settings' name, made if there is none."""
        from mlflow.exceptions import MlflowException

        name = self._settings.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment and experiment.lifecycle_stage != "active":
            self._free_name(experiment)
            experiment = None
        if experiment:
            for key, value in _KIND.items() - experiment.tags.items():
                if key not in experiment.tags:
                    self._client.set_experiment_tag(experiment.experiment_id, key, value)
            return str(experiment.experiment_id)
        try:
            return str(self._client.create_experiment(name, artifact_location=self._artifacts, tags=_KIND))
        except MlflowException as error:
            experiment = self._client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
                raise
            return str(experiment.experiment_id)  # another process was quicker

    def _free_name(self, deleted: Any) -> None:
        """Give a deleted experiment another name, as MLflow keeps the name taken; it and its runs stay deleted."""
        other = f"{self._settings.experiment[:400]} (deleted, {deleted.experiment_id})"
        self._client.restore_experiment(deleted.experiment_id)
        self._client.rename_experiment(deleted.experiment_id, other)
        self._client.delete_experiment(deleted.experiment_id)
        logger.warning(
            "MLflow's experiment %s was deleted: a new one is begun, and the deleted one is now called %s.",
            self._settings.experiment,
            other,
        )

    def _found(self) -> Any:
        """The run of this identity: the one of this folder, or of one that was moved here; not that of a copy's."""
        folder = clean_text(str(self._identity.folder), TAG_CHARACTERS)
        query = f"tags.`{_KEY_TAG}` = '{self._identity.key}'"
        runs = self._client.search_runs([self._experiment_id], query)
        for run in runs:
            if run.data.tags.get(_FOLDER_TAG) == folder:
                return run
        for run in runs:
            if not Path(run.data.tags.get(_FOLDER_TAG, "")).is_dir():
                self._client.set_tag(run.info.run_id, _FOLDER_TAG, folder)
                return run
        return None if runs else self._of_earlier_release()

    def _of_earlier_release(self) -> Any:
        """A run whose key is MLflow's own, as checkpoints of earlier releases have it."""
        from mlflow.exceptions import MlflowException

        if not self._identity.resumed:
            return None
        try:
            run = self._client.get_run(self._identity.key)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def watch_system(self) -> None:
        """Record the use of the machine; the monitor of MLflow ends when the store cannot be reached."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if not self._settings.system_metrics or (self._monitor and self._monitor._process.is_alive()):
            return
        self._monitor = SystemMetricsMonitor(
            self.id,
            sampling_interval=SYSTEM_METRICS_SECONDS,
            resume_logging=self._continued or self._monitor is not None,
            tracking_uri=self._settings.uri,
        )
        self._monitor.start()

    def describe(self, params: Mapping[str, str], tags: Mapping[str, str] = EMPTY) -> None:
        """Record parameters and tags. MLflow's parameters are immutable: what a resumed run changes becomes a tag."""
        from mlflow.entities import Param, RunTag

        self._params, self._tags, known = params, tags, self._known_params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        changed = {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
        told = [
            RunTag(clean_name(key), clean_text(value, TAG_CHARACTERS)) for key, value in {**tags, **changed}.items()
        ]
        _in_parts(new, ENTRIES_PER_BATCH, lambda part: self._client.log_batch(self.id, params=part))
        _in_parts(told, ENTRIES_PER_BATCH, lambda part: self._client.log_batch(self.id, tags=part))

    def tell(self, story: Story) -> None:
        """Say in words how far the run has come."""
        self._client.set_tag(self.id, NOTE, story.note(self.id)[:TAG_CHARACTERS])

    def log(self, points: Iterable[Point]) -> None:
        """Record points under names that MLflow takes."""
        from mlflow.entities import Metric

        points = [point._replace(key=stored_name(point.key)) for point in points]
        for point in points:
            if point.key.startswith(_EVALUATION):
                self._evaluations.setdefault(point.step, []).append(point)
        metrics = [Metric(*point) for point in points]
        _in_parts(metrics, METRICS_PER_BATCH, lambda part: self._client.log_batch(self.id, metrics=part))

    def fill_in(self, points: Sequence[Point], resumed_at: int) -> None:
        """Make an interrupted run's metrics those of its file: without what came after `resumed_at`, with all before.

        Args:
            points: all that the file holds.
            resumed_at: the step of the checkpoint that it went on from.
        """
        self._forget_after(resumed_at)
        if self._begun_anew:
            self.describe(self._params, self._tags)
            self.watch_system()
            self._begun_anew = False
        recorded = {
            (key, point.step, point.value)
            for key in self._client.get_run(self.id).data.metrics
            if not key.startswith(_SYSTEM)
            for point in self._client.get_metric_history(self.id, key)
        }
        self.log(point for point in points if (stored_name(point.key), point.step, point.value) not in recorded)

    def _forget_after(self, step: int) -> None:
        """Remove what an abandoned future left. A server removes no metrics: there the run is begun anew.

        Whichever call fails, another attempt goes on from there.
        """
        run = self._client.get_run(self.id)
        keys = [m.key for m in run.data._metric_objs if m.step > step and not m.key.startswith(_SYSTEM)]
        if not keys:
            return
        store = database_of(self._client)
        if store is not None:
            delete_metrics(store, self.id, keys, step)
        else:
            if run.info.lifecycle_stage == "active":
                self.close("KILLED")
                self._client.delete_run(self.id)
            self._take(None)
            self._begun_anew = True

    def upload(self, path: Path, folder: str) -> None:
        """See `upload`."""
        upload(self._client, self.id, path, folder)

    def log_model(self, name: str, checkpoint: Path, form: ModelForm) -> None:
        """Add the agent of a checkpoint as a model, with what evaluations have found of it."""
        log_model(self._client, self._run, name, checkpoint, form, self._evaluations.get(step_of(checkpoint), ()))

    def register(self) -> None:
        """Register the newest of the best models, if the settings say so."""
        if self._settings.registered_model_name is None:
            return
        of_run = f"name = '{BEST}' AND source_run_id = '{self.id}'"
        for newest in self._client.search_logged_models([self._run.info.experiment_id], of_run, max_results=1):
            register(self._client, self._settings.registered_model_name, newest)

    def close(self, status: RunStatus) -> None:
        """End the run."""
        if self._monitor:
            self._monitor.finish()
        self._client.set_terminated(self.id, status)


def _in_parts(items: Sequence[Any], size: int, send: Callable[[Sequence[Any]], object]) -> None:
    """Send everything in batches; what the store refuses in one is found and left out, and costs nothing else."""
    from mlflow.exceptions import MlflowException

    for start in range(0, len(items), size):
        part = items[start : start + size]
        try:
            send(part)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            if len(part) == 1:
                logger.warning("MLflow refuses %s: %s", part[0].key, str(error).strip().partition("\n")[0][:160])
            else:
                _in_parts(part, -(-len(part) // 2), send)
