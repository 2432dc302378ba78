"""A run while it trains: what its loop asks for between two updates, each of which costs at most itself."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mneme.callbacks import Callbacks, Look, Progress
from mneme.configuration.config import Config
from mneme.configuration.records import to_json
from mneme.curriculum import Curriculum
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.runners import Runner
from mneme.distributed.service import Update
from mneme.episodes import EpisodeOrder, Episodes
from mneme.interruption import StopRequest
from mneme.learner import NonfiniteGradient
from mneme.mode_schedule import ModeSchedule
from mneme.reporting.meter import Meter, Row, describe_evaluation, evaluation_row
from mneme.resumption import result_recorded
from mneme.rollout_workers import Evaluation, EvaluationError
from mneme.storage.checkpoint import save_checkpoint
from mneme.storage.failed_update import save_failed_update
from mneme.storage.paths import pasted
from mneme.storage.retention import Best
from mneme.storage.run_folder import RunFolder
from mneme.storage.saving import save_last
from mneme.storage.trust import needs_trust

_log = logging.getLogger(__name__)

_PROBED = 8  # steps of training for each step of a probe
_ENDLESS = 1000  # steps of each lane after which an environment of which no episode has ended is suspicious


@dataclass
class ActiveRun:
    """The parts of a run, and how far it is."""

    blueprint: Blueprint[Config]
    folder: RunFolder
    runner: Runner
    callbacks: Callbacks
    key: str  # by which the tracking store finds the run again
    meter: Meter
    curriculum: Curriculum
    modes: ModeSchedule
    episodes: EpisodeOrder = field(default_factory=EpisodeOrder)
    steps: int = 0
    saved_at: int | None = None  # step of the newest checkpoint of this process
    best: Best | None = None  # of the evaluations so far
    writing: tuple[Progress, Future[Path]] | None = None  # the checkpoint that is under way
    writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    rows_lost: bool = False
    endless: bool = False  # whether it was said that no episode ends
    evaluation_due: bool = False  # after the newest update
    ended: bool = False  # whether training has, so that only the result is missing
    reach: float | None = None  # steps that gradients went back in the newest update

    @property
    def config(self) -> Config:
        """Every setting, as resolved."""
        return self.blueprint.config

    @property
    def progress(self) -> Progress:
        """The run's progress so far."""
        return Progress(self.runner.version, self.steps, self.config.train.total_timesteps)

    def count(self, update: Update) -> tuple[list[Episodes], Row]:
        """Take in what an update reports; returns the episodes that are counted with it, and its metrics, recorded."""
        self.steps += update.report.steps
        episodes = self.episodes.release(update.deliveries)
        row = self.meter.row(update, episodes)
        if self.config.curriculum.stages:
            row["curriculum/level"] = float(self.curriculum.level)
        for sentence in update.report.refused:
            _log.warning(f"a fragment was refused: {sentence}")
        for sentence in update.report.warnings:
            _log.warning(sentence)
        for delivery in update.deliveries:
            for sentence in delivery.stats.failures if delivery.stats else ():
                _log.warning(f"an episode was cut short: {sentence}", extra={"worker": delivery.worker})
        row |= self._probe(self.steps - update.report.steps)
        self._note_reach(row["bptt_length"])
        if self.modes.trained(row["return"]):
            self._next_mode("return in training")
        self._record(row)
        self.callbacks.update(self.progress, MappingProxyType(row))
        return episodes, row

    def _probe(self, steps_before: int) -> Row:
        """What a few greedy episodes come to, where some are due after an update; see `TrainSettings.probe_episodes`.

        It depends on the counts of steps alone, so that a resumed run probes where the run before would have.
        """
        train, length = self.config.train, self.blueprint.facts and self.blueprint.facts.episode_length
        if train.stop_success is None or train.probe_episodes is None or not length or not self.curriculum.complete:
            return {}
        every = _PROBED * train.probe_episodes * length
        if train.evaluation_environments != "own" or self.steps // every == steps_before // every:
            return {}
        try:
            probe = self.runner.evaluate(train.probe_episodes, Look.PROBE.seed(self.config.seed, self.steps))
        except EvaluationError as error:
            _log.warning(f"a probe at step {self.steps:,} came to no result: {error}")
            return {}
        finally:
            self.meter.skip_pause()
        prefix = Look.PROBE.prefix
        return {f"{prefix}return": probe.mean_return, f"{prefix}success": float(probe.successes.mean())}

    def _note_reach(self, steps: float) -> None:
        if self.reach is not None and steps != self.reach:
            _log.info(f"step {self.steps:,}: gradients now go back {steps:,.0f} steps, no longer {self.reach:,.0f}")
        self.reach = steps

    def _next_mode(self, what: str) -> None:
        self.runner.next_mode()
        _log.info(f"step {self.steps:,}: the {what} has stopped rising, so learner.mode={self.modes.mode} begins")

    def _record(self, row: Row) -> None:
        """Keep a row of metrics; a disk that is full costs rows, not the run."""
        try:
            self.folder.append(self.steps, row)
        except OSError as error:
            self.callbacks.unrecorded(self.progress, row)
            if not self.rows_lost:
                _log.warning(f"metrics cannot be written to {self.folder} ({error}); training goes on")
            self.rows_lost = True

    def seems_endless(self) -> bool:
        """True if no episode has ended in many steps of each lane of a task that declares no length; warns once."""
        facts, lane_steps = self.blueprint.facts, self.steps // self.config.rollout.num_envs
        declared = facts is not None and facts.episode_length is not None
        ended = self.meter.episodes or self.episodes.waits()
        if ended or declared or lane_steps < _ENDLESS:
            return False
        if not self.endless:
            _log.warning(
                f"no episode has ended in {lane_steps:,} steps of each lane, so there is no return to show or to "
                f"evaluate; if the environment never ends one, set env.max_episode_steps"
            )
        self.endless = True
        return True

    def enter_level(self) -> None:
        """Collect at the curriculum's level from now on."""
        level = self.runner.level = self.curriculum.level
        self.modes.forget()
        what = "the task itself" if self.curriculum.complete else self.config.curriculum.stages[level]
        _log.info(f"step {self.steps:,}: level {level} begins, {what}")

    def solved(self) -> bool:
        """True if an evaluation and, on other episodes, a second one reach `train.stop_success`; if that is unset, one
        evaluation takes place all the same."""
        if self.saved_at is None:  # evaluation runs the user's code under a new policy: what was learned is saved first
            if self.writing is None:
                self.checkpoint()
            self.settle()
        reached = self._reached(Look.EVALUATION) and self._reached(Look.CONFIRMATION)
        self.evaluation_due, self.ended = False, reached
        if self.config.checkpoint.keep_best and self.best is not None and self.best.step == self.steps:
            self.settle()
            if self.saved_at != self.steps:
                self.checkpoint()
        return reached

    def _reached(self, look: Look) -> bool:
        evaluation, target = self.evaluate(look), self.config.train.stop_success
        success = None if evaluation is None else evaluation.success_rate
        return target is not None and success is not None and success >= target

    def evaluate(self, look: Look) -> Evaluation | None:
        """Run complete episodes, unless none has ended so far; None, with a note, where that came to no result."""
        if self.seems_endless():
            return None
        name = look.name.lower()
        try:
            evaluation = self.runner.evaluate(
                self.config.train.evaluation_episodes, look.seed(self.config.seed, self.steps)
            )
        except EvaluationError as error:
            _log.warning(f"{name} at step {self.steps:,} came to no result: {error}")
            return None
        finally:
            self.meter.skip_pause()
        if look is not Look.RESULT or not result_recorded(self.folder, self.steps):
            self._record(evaluation_row(evaluation, look.prefix))
        _log.info(f"{name} at step {self.steps:,}: {describe_evaluation(evaluation)}")
        self.callbacks.evaluation(self.progress, evaluation, look)
        if look is Look.EVALUATION:
            self.best = Best.of(self.steps, evaluation, self.best)
            if self.modes.evaluated(evaluation.mean_return):
                self._next_mode("return in evaluations")
        return evaluation

    def checkpoint(self) -> None:
        """Have the present state written while training goes on, once the checkpoint before is; see `settle`."""
        self.settle()
        self.writing = self.progress, self.writer.submit(self._snapshot(), self.folder.checkpoints)
        self.meter.skip_pause()

    def settle(self, wait: bool = True) -> None:
        """Tell that the checkpoint under way is whole, if any is; a disk that is full costs it, not the run.

        Args:
            wait: until it is; otherwise nothing happens before.
        """
        if self.writing is None or not (wait or self.writing[1].done()):
            return
        progress, written = self.writing
        try:
            path = written.result()
        except OSError as error:
            _log.warning(
                f"the checkpoint at step {progress.steps:,} could not be written ({error}); training goes on, and the "
                f"checkpoints before it are whole"
            )
        else:
            self.saved_at = progress.steps
            self.callbacks.checkpoint(progress, path)
        finally:
            self.writing = None
        self.meter.skip_pause()

    def close(self) -> None:
        """Wait for the checkpoint under way."""
        self.settle()
        self.writer.shutdown()

    def last_checkpoint(self, stop: StopRequest) -> str | None:
        """Save what the run ends with, unless that was done; what went wrong, if it is not in the run's folder."""
        self.settle()
        if self.saved_at == self.steps:
            return None
        path, fault = save_last(self._snapshot(), self.folder, self.config, stop)
        if path is not None:
            self.callbacks.checkpoint(self.progress, path)
        if fault is not None:
            _log.warning(fault)
        return fault

    def _snapshot(self) -> Callable[[Path], Path]:
        """The state now, which nothing changes any more, as what writes it under a folder of checkpoints."""
        state = self.runner.state()
        parts = {"learner": state.learner}
        parts |= {f"worker-{i}": worker for i, worker in enumerate(state.workers) if worker is not None}
        run, steps, settings = self._description(exact=None not in state.workers), self.steps, self.config.checkpoint
        best = self.best.step if settings.keep_best and self.best is not None else None
        return lambda root: save_checkpoint(root, steps, run, parts, settings.keep, settings.keep_every, best)

    def keep_failed_update(self, error: NonfiniteGradient) -> str:
        """Keep the update that ended the run; returns what there is to say."""
        if error.update is None:
            return str(error)
        try:
            path = save_failed_update(self.folder.path, self.steps, self._description(exact=False), error.update)
        except OSError as fault:
            return f"{error}; the update could not be kept: {fault}"
        trust = " --trust" if needs_trust(self.config, self.folder.path, local=None) else ""
        folder = pasted(self.folder.path)
        return f"{error}; the update is kept in {path}: see it again with: mneme reproduce {folder}{trust}"

    def _description(self, exact: bool) -> dict[str, Any]:
        """The part of a checkpoint besides its arrays; `exact`: whether these are all that the run depends on."""
        return {
            "steps": self.steps,
            "episodes": self.meter.episodes,
            "curriculum": self.curriculum.state(),
            "mode_schedule": self.modes.state(),
            "evaluation_due": self.evaluation_due,
            "ended": self.ended,
            "best": None if self.best is None else self.best._asdict(),
            "waiting_episodes": self.episodes.state(),
            "config": to_json(self.config.without_password().to_dict()),
            "tracking_run": self.key,
            "resumes_exactly": self.config.service.mode == "sync"
            and self.config.train.evaluation_environments == "own"
            and exact,
        }
