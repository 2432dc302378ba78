"""A copy of a run's folder in an object store, kept in the background as checkpoints are written.

MIRROR/NAME/config.yaml  metrics.jsonl  curve.png  checkpoints/step-000000500000/

Nothing there can be renamed, so a checkpoint's manifest is copied after all its other files and removed before them:
without one there is no checkpoint. Training never waits for the store, and no outage ends it.
"""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

from mneme.callbacks import Callback, Outcome, Progress, RunStart
from mneme.configuration.config import Config
from mneme.distributed.config import ConfigError
from mneme.storage.checkpoint import ABANDONED, MOST_JSON, RUN, best_of, list_checkpoints, parse_json, step_of
from mneme.storage.paths import CHECKPOINT_PREFIX, CHECKPOINTS, MANIFEST
from mneme.storage.retention import superseded
from mneme.storage.run_folder import RunFolder
from mneme.storage.saving import PAUSES
from mneme.storage.store import open_store
from mneme.storage.uri import below

_log = logging.getLogger(__name__)

_PATIENCE = 60.0  # seconds without a byte, or of tries that fail, after which the end of a run waits no longer

BESIDE = ("config.yaml", "metrics.jsonl", "curve.png")
"""The files beside the checkpoints."""

Files = Mapping[str, int]


def checkpoints_in(files: Files) -> dict[int, str]:
    """The checkpoints among a mirror's files, those without a manifest included: step -> folder."""
    folders = {name.rpartition("/")[0] for name in files if name.startswith(f"{CHECKPOINTS}/{CHECKPOINT_PREFIX}")}
    steps = {folder: folder.rpartition(CHECKPOINT_PREFIX)[2] for folder in folders}
    return {int(step): folder for folder, step in steps.items() if step.isdecimal() and folder.count("/") == 1}


def whole_checkpoints(files: Files) -> dict[int, str]:
    """Those with a manifest: step -> folder."""
    return {step: folder for step, folder in checkpoints_in(files).items() if f"{folder}/{MANIFEST}" in files}


def _of_a_beginning(name: str) -> bool:
    """True of what a run leaves that ended before its first checkpoint was copied."""
    return name in (*BESIDE, ".probe") or name.startswith(f"{CHECKPOINTS}/{CHECKPOINT_PREFIX}")


def _known(folder: RunFolder) -> set[int]:
    """Steps of the checkpoints in a run's folder, those included that it went on from before."""
    names = {path.name.removeprefix(ABANDONED) for path in folder.checkpoints.glob(f"{ABANDONED}*")}
    return {step_of(path) for path in [*list_checkpoints(folder.checkpoints), *map(Path, names)]}


class Mirror(Callback):
    """Copies every checkpoint of a run, and the files beside it.

    Args:
        config: of the run, which has a mirror.
        folder: of the run.
        saved: what it goes on from; None for a new one.

    Raises:
        ConfigError: the mirror cannot be used, or holds another run, or more of this one.
    """

    def __init__(self, config: Config, folder: RunFolder, saved: Mapping[str, Any] | None) -> None:
        assert config.checkpoint.mirror is not None
        self.uri = below(config.checkpoint.mirror, folder.path.name)
        try:
            self._store, files = open_store(self.uri, writing=True)
            newest = max(whole_checkpoints(files).items(), default=None)
            record = newest and parse_json(self._store.read(f"{newest[1]}/{RUN}", MOST_JSON), RUN)
        except (OSError, ValueError) as error:
            raise ConfigError(f"checkpoint.mirror: {error}; mend that, or leave checkpoint.mirror unset") from None
        if saved is None and (newest or not all(map(_of_a_beginning, files))):
            raise ConfigError(
                f"{self.uri} exists already; choose another name=..., or go on with it: --resume {self.uri}"
            )
        if saved is not None and newest and record:
            if record.get("tracking_run") != saved["tracking_run"]:
                raise ConfigError(f"{self.uri} holds another run; move that, or rename {folder}")
            if newest[0] > saved["steps"] and newest[0] not in _known(folder):
                raise ConfigError(
                    f"{self.uri} goes on to step {newest[0]:,}, which {folder} does not hold; go on with that: "
                    f"--resume {self.uri}"
                )
        self._folder, self._settings = folder, config.checkpoint
        self._newest: Path | None = None
        self._wake, self._done, self._ending, self._fault = Event(), Event(), False, ""
        self._thread = Thread(target=self._work, name="mneme-mirror", daemon=True)

    def on_start(self, run: RunStart) -> None:
        """Begin to wait for checkpoints."""
        self._thread.start()

    def on_checkpoint(self, progress: Progress, path: Path) -> None:
        """Have it copied."""
        self._newest = path
        self._wake.set()

    def on_end(self, progress: Progress, outcome: Outcome) -> None:
        """Wait for the last checkpoint to be copied, as long as bytes move."""
        if not self._thread.is_alive():
            return
        self._ending = True
        self._wake.set()
        moved = -1
        while moved != self._store.moved and not self._done.is_set():
            moved = self._store.moved
            self._done.wait(_PATIENCE)
        if not self._done.is_set():
            self._fault = f"nothing has moved for {_PATIENCE:.0f} s"
        if self._fault:
            _log.warning(
                f"the mirror {self.uri} lacks the last checkpoint ({self._fault}); it is whole in "
                f"{self._folder}: copy that folder there, its manifest.json last"
            )

    def _work(self) -> None:
        told = False
        while not self._done.is_set():
            self._wake.wait()
            self._wake.clear()
            ending, until = self._ending, monotonic() + _PATIENCE
            for pause in (*(PAUSES if ending else ()), 0):
                self._fault = self._attempt()
                if not self._fault or monotonic() > until:
                    break
                sleep(pause)
            if self._fault and not told:
                _log.warning(f"a checkpoint could not be copied: {self._fault}; the next one will be tried again")
            elif told and not self._fault:
                _log.info(f"{self.uri} is complete again")
            told = bool(self._fault)
            if ending:
                self._done.set()

    def _attempt(self) -> str:
        """Catch up; what was in the way, if anything."""
        if self._newest is None:
            return ""
        try:
            self._catch_up(self._newest)
        except FileNotFoundError:
            return ""  # superseded meanwhile: a newer one follows
        except Exception as error:  # whatever it is, training goes on and the next checkpoint is tried
            return str(error) or type(error).__name__
        return ""

    def _catch_up(self, newest: Path) -> None:
        """Copy what the store lacks, the newest checkpoint first, and remove there what is superseded."""
        best = best_of(newest) if self._settings.keep_best else None
        files = self._store.files()
        for path in (self._folder.config, self._folder.metrics, self._folder.curve):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as file:
                    self._store.put(path.name, file)
        here = {step_of(path): path for path in list_checkpoints(self._folder.checkpoints)}
        here |= {step_of(newest): newest}  # which may have been written elsewhere
        last = max(here)
        for step in sorted(here, reverse=True):
            try:
                self._copy(here[step], files)
            except FileNotFoundError:
                continue  # here, as it was superseded meanwhile
        files = self._store.files()
        whole = whole_checkpoints(files)
        gone = superseded(
            (step for step in whole if step <= last), self._settings.keep, self._settings.keep_every, best
        )
        for step, folder in checkpoints_in(files).items():
            if step not in whole or step in gone or step > last:  # these were abandoned, as the run went on from before
                self._store.remove(folder, MANIFEST)

    def _copy(self, path: Path, files: Files) -> None:
        folder, manifest = f"{CHECKPOINTS}/{path.name}", (path / MANIFEST).read_bytes()
        if f"{folder}/{MANIFEST}" in files:
            if self._store.read(f"{folder}/{MANIFEST}", MOST_JSON) == manifest:
                return
            self._store.remove(folder, MANIFEST)  # of the same step, before the run went on from an earlier one
        with ExitStack() as stack:  # once they are open, they can be read even if they are superseded meanwhile
            opened = {
                file.name: stack.enter_context(file.open("rb")) for file in path.iterdir() if not file.is_symlink()
            }
            for name in sorted(opened, key=lambda name: (name == MANIFEST, name)):
                self._store.put(f"{folder}/{name}", opened[name])
