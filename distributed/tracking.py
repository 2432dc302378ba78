"""MLflow tracking that training never waits for: a bounded queue and one daemon thread in front of the store.

The only file that imports MLflow, and it does so inside the thread, because the import takes seconds.

The thread consumes metrics and uploads from the queue and produces calls to the store. It waits for the
queue, then up to `COALESCE_SECONDS` so that several updates travel as one batch; `Tracker.close` ends both.
"""

import logging
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Literal, NamedTuple

from controllers import Settings

RunStatus = Literal["FINISHED", "KILLED", "FAILED"]

QUEUE_ITEMS = 4096
COALESCE_SECONDS = 0.5
REOPEN_SECONDS = 30.0
SYSTEM_METRICS_SECONDS = 5.0
METRICS_PER_BATCH = 1000  # MLflow refuses larger batches, longer parameters and longer keys
ENTRIES_PER_BATCH = 100  # parameters or tags
PARAM_CHARACTERS = 6000
KEY_CHARACTERS = 250

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

logger = logging.getLogger("mneme")


@dataclass(frozen=True, kw_only=True)
class TrackingSettings(Settings, section="tracking"):
    """Where runs are recorded."""

    uri: str = "sqlite:///runs/mlflow.db"
    """MLflow store: a local SQLite file, artifacts beside it, or the URL of a tracking server."""
    experiment: str = "mneme"
    """MLflow experiment that gathers the runs."""
    run_name: str | None = None
    """Name of the run in MLflow. Unset: that of the run's folder."""
    enabled: bool = True
    """Record the run at all."""
    system_metrics: bool = True
    """Record the use of CPU, memory, disk, network and GPU on the machine that runs the service."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.uri:
            raise ValueError(
                "tracking.uri is empty; give a store such as sqlite:///runs/mlflow.db, or set enabled=false"
            )
        if not 1 <= len(self.experiment) <= 500:
            raise ValueError(f"tracking.experiment has {len(self.experiment)} characters; it must have 1 to 500")


class Tracker:
    """Records one run in MLflow. No method fails with the store; only `run_id` and `close` wait, bounded.

    A store that cannot be reached costs one warning per outage and the metrics of its duration (`dropped`).
    """

    def __init__(
        self,
        settings: TrackingSettings,
        *,
        run_id: str | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a run in the background.

        Args:
            settings: The store and the experiment.
            run_id: A run to continue, as `run_id()` gave it; None starts a new one.
            params: The resolved configuration, nested; keys are recorded with dots between the levels.
        """
        self._settings = settings
        self._resumed_id = run_id
        self._params = flatten(params or {})
        self._queue: Queue[_Point | _Job | RunStatus] = Queue(maxsize=QUEUE_ITEMS)
        self._tried = Event()  # the run is open, or the first attempt has failed
        self._closing = Event()
        self._run: _Run | None = None
        self._reopen_at = 0.0
        self._outage = False
        self._refused = 0  # by a full queue; written by the caller's thread only
        self._lost = 0  # by the store; written by the tracking thread only
        self._thread = Thread(target=self._work, name="mneme-tracking", daemon=True)
        if settings.enabled:
            self._thread.start()

    @property
    def dropped(self) -> int:
        """Metric values that were not recorded, because the store was out of reach or too slow."""
        return self._refused + self._lost

    def run_id(self, timeout: float = 30.0) -> str | None:
        """The MLflow run, or None if there is none after `timeout` seconds or the first failed attempt."""
        if not self._settings.enabled:
            return None
        self._tried.wait(timeout)
        run = self._run
        return run.id if run else None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values at an environment step; those that are not finite are left out."""
        values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        if values and not self._offer(_Point(step, time.time_ns() // 1_000_000, values)):
            self._refused += len(values)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file, or a folder with its name, into the run's artifacts under `folder`."""
        self._offer(lambda run: run.upload(path, folder))

    def text(self, content: str, name: str) -> None:
        """Record a text as the artifact `name`, such as "config.yaml"."""
        self._offer(lambda run: run.text(content, name))

    def close(self, status: RunStatus = "FINISHED", timeout: float = 20.0) -> None:
        """Record what is queued, end the run with `status` and stop; gives up after `timeout` seconds."""
        if self._closing.is_set() or not self._settings.enabled:
            return
        self._closing.set()
        deadline = time.monotonic() + timeout
        with suppress(Full):
            self._queue.put(status, timeout=timeout)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.warning(
                "MLflow at %s did not take everything within %g s: the end of this run is missing there.",
                _without_password(self._settings.uri),
                timeout,
            )

    def _offer(self, item: "_Point | _Job") -> bool:
        if not self._settings.enabled:
            return True
        if self._closing.is_set():
            return False
        try:
            self._queue.put_nowait(item)
        except Full:
            return False
        return True

    # Below: the tracking thread.

    def _work(self) -> None:
        self._open()
        self._tried.set()
        while True:
            points, jobs, status = self._next_batch()
            if self._run is None and time.monotonic() >= self._reopen_at and not self._closing.is_set():
                self._open()
            if self._run is None:
                self._lost += sum(len(point.values) for point in points)
            else:
                self._deliver(self._run, points, jobs)
                if status:
                    self._attempt(self._run.close, status)
            if status:
                return
            self._closing.wait(COALESCE_SECONDS)

    def _next_batch(self) -> "tuple[list[_Point], list[_Job], RunStatus | None]":
        """Wait for one item and take what else is there, up to the end of the run."""
        points: list[_Point] = []
        jobs: list[_Job] = []
        item = self._queue.get()
        while True:
            if isinstance(item, _Point):
                points.append(item)
            elif isinstance(item, str):
                return points, jobs, item
            else:
                jobs.append(item)
            try:
                item = self._queue.get_nowait()
            except Empty:
                return points, jobs, None

    def _open(self) -> None:
        def connect() -> None:
            self._run = _Run(self._settings, self._resumed_id)

        if self._attempt(connect) and self._run:
            self._attempt(self._run.describe, self._params)
        else:
            self._reopen_at = time.monotonic() + REOPEN_SECONDS

    def _deliver(self, run: "_Run", points: "Sequence[_Point]", jobs: "Sequence[_Job]") -> None:
        for batch in _batches(points):
            if not self._attempt(run.log, batch):
                self._lost += len(batch)
        for job in jobs:
            self._attempt(job, run)

    def _attempt(self, call: Callable[..., None], *args: Any) -> bool:
        """Call the store; a failure is reported once per outage and never raised."""
        try:
            call(*args)
        except Exception as error:
            if not self._outage:
                logger.warning(
                    "MLflow at %s failed (%s): training goes on, and what cannot be recorded is dropped.",
                    _without_password(self._settings.uri),
                    _reason(error),
                )
            self._outage = True
            return False
        self._outage = False
        return True


class _Point(NamedTuple):
    """The metrics of one update."""

    step: int  # environment steps so far
    time_ms: int  # since the epoch
    values: dict[str, float]  # finite


class _Run:
    """One open MLflow run; every method calls the store and may raise."""

    def __init__(self, settings: TrackingSettings, run_id: str | None) -> None:
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
        artifacts = _artifact_folder(settings.uri)
        self._client = MlflowClient(tracking_uri=settings.uri)
        experiment = self._client.get_experiment_by_name(settings.experiment)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment(settings.experiment, artifact_location=artifacts)
        )
        run = self._reopen(run_id) if run_id else None
        resumed = run is not None
        run = run or self._client.create_run(experiment_id, run_name=settings.run_name)
        self.id: str = run.info.run_id
        self._known_params: Mapping[str, str] = run.data.params
        self._monitor = self._watch_system(settings.uri, resumed) if settings.system_metrics else None

    def _reopen(self, run_id: str) -> Any:
        """The existing run, set to running; None, with a warning, where the store has it no more."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            run = None
        if run is None or run.info.lifecycle_stage != "active":
            logger.warning("MLflow has no run %s to resume: a new one is started.", run_id)
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run

    def _watch_system(self, uri: str, resumed: bool) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            self.id, sampling_interval=SYSTEM_METRICS_SECONDS, resume_logging=resumed, tracking_uri=uri
        )
        monitor.start()
        return monitor

    def describe(self, params: Mapping[str, str]) -> None:
        """Record the parameters. MLflow's are immutable: what a resumed run changes becomes a tag."""
        from mlflow.entities import Param, RunTag

        known = self._known_params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        changed = [RunTag(f"resumed.{key}", value) for key, value in params.items() if known.get(key, value) != value]
        for start in range(0, len(new), ENTRIES_PER_BATCH):
            self._client.log_batch(self.id, params=new[start : start + ENTRIES_PER_BATCH])
        for start in range(0, len(changed), ENTRIES_PER_BATCH):
            self._client.log_batch(self.id, tags=changed[start : start + ENTRIES_PER_BATCH])

    def log(self, batch: "Sequence[tuple[str, float, int, int]]") -> None:
        """Record (key, value, time in ms, step), at most `METRICS_PER_BATCH` of them."""
        from mlflow.entities import Metric

        self._client.log_batch(self.id, metrics=[Metric(*values) for values in batch])

    def upload(self, path: Path, folder: str) -> None:
        if path.is_dir():
            target = f"{folder}/{path.name}" if folder else path.name
            self._client.log_artifacts(self.id, str(path), target)
        else:
            self._client.log_artifact(self.id, str(path), folder or None)

    def text(self, content: str, name: str) -> None:
        self._client.log_text(self.id, content, name)

    def close(self, status: RunStatus) -> None:
        if self._monitor:
            self._monitor.finish()
        self._client.set_terminated(self.id, status)


_Job = Callable[[_Run], None]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as MLflow parameters: dotted keys, text values, both cut to MLflow's limits."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and all(isinstance(inner, str) for inner in value):
            flat |= flatten(value, f"{name}.")
        else:
            text = str(value)
            short = text if len(text) <= PARAM_CHARACTERS else text[: PARAM_CHARACTERS - 1] + "…"
            flat[name[:KEY_CHARACTERS]] = short
    return flat


def _batches(points: Sequence[_Point]) -> Iterator[list[tuple[str, float, int, int]]]:
    """MLflow's (key, value, time in ms, step) of all points, in batches that it accepts."""
    rows = [(key, value, point.time_ms, point.step) for point in points for key, value in point.values.items()]
    for start in range(0, len(rows), METRICS_PER_BATCH):
        yield rows[start : start + METRICS_PER_BATCH]


def _artifact_folder(uri: str) -> str | None:
    """`mlartifacts` beside a SQLite file, whose folder is created; None: the server decides."""
    database = _database(uri)
    if database is None:
        return None
    database.parent.mkdir(parents=True, exist_ok=True)
    return (database.parent / "mlartifacts").as_uri()


def _database(uri: str) -> Path | None:
    """The full path of a SQLite store's file; None for any other store."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix).partition("?")[0]).absolute() if uri.startswith(prefix) else None


def _reason(error: BaseException) -> str:
    """One short line: the operating system's or network's own words where they lie beneath, else MLflow's."""
    root = error
    while beneath := root.__cause__ or root.__context__:
        root = beneath
    chosen = root if isinstance(root, OSError) and str(root) else error
    lines = str(chosen).strip().splitlines() or [type(chosen).__name__]
    return _without_password(lines[0] if len(lines[0]) <= 160 else lines[0][:159] + "…")


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def absolute_uri(uri: str) -> str:
    """A SQLite file named from the current folder as a full path, so that a resumed run finds it from anywhere."""
    database, (_, separator, options) = _database(uri), uri.partition("?")
    return uri if database is None else f"sqlite:///{database}{separator}{options}"


def _can_be_shown(store: str) -> bool:
    scheme, separator, _ = store.partition("://")
    if not separator or scheme in ("file", "sqlite"):
        return True
    from mlflow.store.db.db_types import DATABASE_ENGINES  # it takes a second

    plugins = (plugin.name for plugin in entry_points(group="mlflow.tracking_store"))
    return scheme.partition("+")[0] in (*DATABASE_ENGINES, "databricks") or scheme in plugins


def serve_dashboard(store: str, port: int) -> None:
    """Serve MLflow's pages for a store on loopback until interrupted.

    Raises:
        ValueError: the store is none that MLflow's pages can show.
        OSError: the port is taken. One sentence each.
    """
    if not _can_be_shown(store):
        raise ValueError(f"--store is {store}; give a folder, sqlite:///FILE, or a URI of a database that MLflow knows")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise OSError(
                f"port {port} on 127.0.0.1 cannot be used ({error.strerror}); choose another: --port"
            ) from None
    database = _database(store)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # In this process's place, so that whoever stops this process stops the server.
    os.execve(sys.executable, [sys.executable, "-m", "mlflow", "ui", *arguments], os.environ | ENVIRONMENT)
