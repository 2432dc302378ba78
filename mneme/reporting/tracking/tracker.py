"""MLflow tracking that training never waits for: one daemon thread that follows the run's own file.

Training appends to metrics.jsonl; the thread reads what is new and sends it in batches. Where it could not, it sends
the same later, so a store that is away for a while, or a process that is killed, costs no rows: what is missing is
filled in from the file. The thread waits for nothing but the store, and looks again every `POLL_SECONDS`;
`Tracker.close` ends it.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

from mneme.configuration.passwords import without_password
from mneme.reporting.tracking.database import LOCK_SECONDS
from mneme.reporting.tracking.metrics_file import MetricsFile, points_of
from mneme.reporting.tracking.model import ModelForm
from mneme.reporting.tracking.names import flatten
from mneme.reporting.tracking.settings import TrackingSettings, sqlite_file
from mneme.reporting.tracking.store_run import EMPTY, Identity, Point, RunStatus, StoreRun
from mneme.reporting.tracking.story import Story, code_tags

POLL_SECONDS = 0.5
RETRY_SECONDS = 30.0
SERVER_SECONDS = 20.0  # to end a run
FILE_SECONDS = LOCK_SECONDS + 30.0
_BYTES_PER_READ = 1 << 20
_UNWRITTEN_ROWS = 4096  # kept in memory while the run's file cannot be written

logger = logging.getLogger("mneme")

K = TypeVar("K")
V = TypeVar("V")


class Tracker:
    """Records one run in MLflow. No method fails with the store; only `run_id` and `close` wait, bounded.

    A store that cannot be reached costs one warning per outage.
    """

    def __init__(
        self,
        settings: TrackingSettings,
        identity: Identity,
        *,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] = EMPTY,
    ) -> None:
        """Open the run in the background.

        Args:
            settings: The store and the experiment.
            identity: By which the store's run is found again.
            params: The resolved configuration, nested; keys are recorded with dots between the levels.
            tags: By which the run is found among others; the version of the code comes on top.
        """
        self._settings, self._identity = settings, identity
        self._params, self._tags = flatten(params or {}), tags
        self._metrics: MetricsFile | None = None
        self._resumed_at: int | None = None  # until what an interrupted run left has been put right
        self._unwritten: deque[list[Point]] = deque(maxlen=_UNWRITTEN_ROWS)
        self._files: dict[tuple[str, str], Path] = {}  # to upload: (folder, name) -> path, the newest of each name
        self._models: dict[str, tuple[Path, ModelForm]] = {}  # to add: name -> checkpoint and form, the newest of each
        self._stories: dict[None, Story] = {}  # the newest, if it is to be told
        self._lock = threading.Lock()  # of the files, models and stories
        self._tried = Event()  # the run is open, or the first attempt has failed
        self._closing = Event()
        self._status: RunStatus = "FAILED"
        self._run: StoreRun | None = None
        self._outage = False
        self._thread = Thread(target=self._work, name="mneme-tracking", daemon=True)
        if settings.enabled:
            self._thread.start()

    def run_id(self, timeout: float = 30.0) -> str | None:
        """The MLflow run, or None if there is none after `timeout` seconds or the first failed attempt."""
        if not self._settings.enabled:
            return None
        self._tried.wait(timeout)
        run = self._run
        return run.id if run else None

    def follow(self, metrics: Path, resumed_at: int | None = None) -> None:
        """Record the lines of a run's file, those that are there and those to come.

        Args:
            metrics: The file, from which nothing is removed any more.
            resumed_at: The step from which the run was resumed: what the store has of later ones was abandoned.
        """
        self._resumed_at = resumed_at
        self._metrics = MetricsFile(metrics)

    def log(self, row: Mapping[str, float], step: int) -> None:
        """Record a row that could not be written to the file."""
        self._unwritten.append(points_of(row, step, round(time.time() * 1000)))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Copy a file, or a folder with its name, into the run's artifacts under `folder`.

        Under a `folder` the artifacts are kept like what lies beside `path`: what has gone from there goes.
        """
        with self._lock:
            self._files[folder, path.name] = path

    def model(self, name: str, checkpoint: Path, form: ModelForm) -> None:
        """Add the agent of a checkpoint to the run as a model; of those that wait, the newest of each name."""
        with self._lock:
            self._models[name] = checkpoint, form

    def tell(self, story: Story) -> None:
        """Say in words how far the run has come."""
        with self._lock:
            self._stories[None] = story

    def close(self, status: RunStatus = "FINISHED", timeout: float | None = None) -> None:
        """Record what is there, end the run with `status` and stop; gives up after `timeout` seconds.

        Unset, that is soon for a server, which may never answer, and late for a file, which others may be making.
        """
        if self._closing.is_set() or not self._settings.enabled:
            return
        if timeout is None:
            timeout = SERVER_SECONDS if sqlite_file(self._settings.uri) is None else FILE_SECONDS
        self._status = status
        self._closing.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning(
                "MLflow at %s did not take everything within %g s: the end of this run is missing there.",
                without_password(self._settings.uri),
                timeout,
            )

    # Below: the tracking thread.

    def _work(self) -> None:
        retry_at = 0.0
        while True:
            closing = self._closing.is_set()
            if closing or time.monotonic() >= retry_at:
                retry_at = 0.0 if self._attempt(self._deliver) else time.monotonic() + RETRY_SECONDS
                self._tried.set()
            if closing:
                if self._run:
                    if self._status == "FINISHED":
                        self._attempt(self._run.register)
                    self._attempt(self._run.close, self._status)
                return
            self._closing.wait(POLL_SECONDS)

    def _deliver(self) -> None:
        """Send all that there is."""
        if self._run is None:
            run = StoreRun(self._settings, self._identity)
            run.describe(self._params, {**self._tags, **code_tags()})
            run.watch_system()
            self._run = run
        if self._metrics is not None:
            self._send_metrics(self._run, self._metrics)
        if self._metrics is not None or self._closing.is_set():
            self._send_files(self._run)

    def _send_metrics(self, run: StoreRun, metrics: MetricsFile) -> None:
        if self._resumed_at is not None:
            points, offset = metrics.read()
            run.fill_in(points, self._resumed_at)
            metrics.offset, self._resumed_at = offset, None
        while (read := metrics.read(_BYTES_PER_READ))[1] > metrics.offset:
            run.log(read[0])
            metrics.offset = read[1]
        while self._unwritten:
            points = self._unwritten.popleft()
            try:
                run.log(points)
            except BaseException:
                self._unwritten.appendleft(points)
                raise

    def _send_files(self, run: StoreRun) -> None:
        """Send the files, models and words that wait, each by itself; what fails waits on."""
        failures = [
            *self._sent(self._files, lambda key, path: run.upload(path, key[0])),
            *self._sent(self._models, lambda name, model: run.log_model(name, *model)),
            *self._sent(self._stories, lambda _, story: run.tell(story)),
        ]
        if failures:
            raise failures[0]

    def _sent(self, waiting: dict[K, V], send: Callable[[K, V], None]) -> Iterator[Exception]:
        """Take out what could be sent; what else there is to say."""
        for key, value in list(waiting.items()):
            try:
                send(key, value)
            except Exception as error:
                yield error
                continue
            with self._lock:
                if waiting[key] is value:
                    del waiting[key]

    def _attempt(self, call: Callable[..., None], *args: Any) -> bool:
        """Call the store; a failure is reported once per outage and never raised."""
        try:
            call(*args)
        except Exception as error:
            if not self._outage:
                logger.warning(
                    "MLflow at %s failed (%s): training goes on, and what is missing there is filled in later.",
                    without_password(self._settings.uri),
                    _reason(error),
                )
            self._outage = True
            return False
        if self._outage and self._run and not self._closing.is_set():
            self._run.watch_system()
        self._outage = False
        return True


def _reason(error: BaseException) -> str:
    """One short line: the operating system's or network's own words where they lie beneath, else MLflow's."""
    root = error
    while beneath := root.__cause__ or root.__context__:
        root = beneath
    chosen = root if isinstance(root, OSError) and str(root) else error
    lines = str(chosen).strip().splitlines() or [type(chosen).__name__]
    return without_password(lines[0] if len(lines[0]) <= 160 else lines[0][:159] + "…")
