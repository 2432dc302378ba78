"""One training run from configuration to verdict: build the parts, restore, loop, look, keep, let go."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from mneme.configuration.config import Config
from mneme.configuration.records import to_json
from mneme.controllers.compilation import compile_ahead
from mneme.curriculum import Curriculum
from mneme.distributed.blueprint import Blueprint, make_blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.replay import Replay
from mneme.distributed.runners import LocalRunner, Runner, RunState
from mneme.distributed.service import Update, asynchronous, synchronous
from mneme.envs import check_sendable
from mneme.episodes import EpisodeOrder
from mneme.interruption import StopRequest, stopping_on_signals, warnings_noted
from mneme.learner import resolve_device
from mneme.reporting.curves import draw_learning_curve
from mneme.reporting.display import Display
from mneme.reporting.meter import Meter, Row, describe_evaluation, evaluation_row
from mneme.reporting.tracking import Identity, RunStatus, Tracker, absolute_uri
from mneme.rollout_workers import Evaluation, EvaluationError
from mneme.storage.checkpoint import save_checkpoint, set_aside_after
from mneme.storage.restoring import checked_state, load_run
from mneme.storage.run_folder import RunFolder
from mneme.storage.saving import save_last
from mneme.storage.trust import refuse_foreign_places

_EXPLORATION = 0.03  # success that sampled actions may cost a policy whose greedy form succeeds
_ENDLESS = 1000  # steps of each lane after which an environment of which no episode has ended is suspicious


class Look(IntEnum):
    """What an evaluation is for; each look of a run has episodes of its own."""

    EVALUATION = 0  # how far training is
    CONFIRMATION = 1  # whether what the first look saw is seen again
    RESULT = 2  # what the run reports; decides nothing

    def seed(self, run_seed: int, steps: int) -> int:
        """Seed of the look after `steps` environment steps."""
        return int(np.random.SeedSequence([run_seed, steps, int(self)]).generate_state(1)[0])


class Result(NamedTuple):
    """How a run ended."""

    folder: Path
    steps: int  # environment steps trained on, since the run's very beginning
    evaluation: Evaluation | None  # at the end; None if the run was interrupted, or it came to no result
    interrupted: bool
    meter: Meter


@dataclass
class _Run:
    """The parts of a run that its hooks share."""

    blueprint: Blueprint[Config]
    folder: RunFolder
    runner: Runner
    display: Display
    tracker: Tracker
    key: str  # by which the tracking store finds the run again
    meter: Meter
    curriculum: Curriculum
    episodes: EpisodeOrder = field(default_factory=EpisodeOrder)
    steps: int = 0
    saved_at: int | None = None  # step of the newest checkpoint of this process
    rows_lost: bool = False
    endless: bool = False  # whether it was said that no episode ends

    @property
    def config(self) -> Config:
        return self.blueprint.config

    def record(self, row: Row) -> None:
        """Keep a row of metrics; a disk that is full costs rows, not the run."""
        try:
            self.folder.append(self.steps, row)
        except OSError as error:
            self.tracker.log(row, self.steps)
            if not self.rows_lost:
                self.display.note(f"metrics cannot be written to {self.folder.path} ({error}); training goes on")
            self.rows_lost = True

    def show(self, update: Update, row: Row) -> None:
        for sentence in update.report.refused:
            self.display.note(f"a fragment was refused: {sentence}")
        for delivery in update.deliveries:
            for sentence in delivery.stats.failures if delivery.stats else ():
                self.display.note(f"an episode was cut short: {sentence}")
        self.display.update(row, self.steps)

    def seems_endless(self) -> bool:
        """Whether no episode has ended in many steps of each lane, though the task declares no length. Said once."""
        facts, lane_steps = self.blueprint.facts, self.steps // self.config.rollout.lanes
        declared = facts is not None and facts.episode_length is not None
        ended = self.meter.episodes or self.episodes.waits()
        if ended or declared or lane_steps < _ENDLESS:
            return False
        if not self.endless:
            self.display.note(
                f"no episode has ended in {lane_steps:,} steps of each lane, so there is no return to show or to "
                f"evaluate; if the environment never ends one, set env.max_episode_steps"
            )
        self.endless = True
        return True

    def enter_level(self) -> None:
        """Collect at the curriculum's level from now on."""
        level = self.runner.level = self.curriculum.level
        what = "the task itself" if self.curriculum.complete else self.config.curriculum.stages[level]
        self.display.note(f"step {self.steps:,}: level {level} begins, {what}")

    def solved(self) -> bool:
        """Whether an evaluation and, on other episodes, a second one reach `train.stop_success`; if that is unset, one
        evaluation takes place all the same."""
        if self.saved_at is None:
            self.checkpoint()  # evaluation runs the user's code under a new policy: what was learned is saved first
        return self._reached(Look.EVALUATION) and self._reached(Look.CONFIRMATION)

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
            self.display.note(f"{name} at step {self.steps:,} came to no result: {error}")
            return None
        finally:
            self.meter.skip_pause()
        self.record(evaluation_row(evaluation, "confirmation/" if look is Look.CONFIRMATION else "evaluation/"))
        self.display.note(f"{name} at step {self.steps:,}: {describe_evaluation(evaluation)}")
        return evaluation

    def checkpoint(self) -> None:
        """Save; a disk that is full costs this checkpoint, not the run."""
        try:
            path = self._snapshot()(self.folder.checkpoints)
        except OSError as error:
            self.display.note(
                f"the checkpoint at step {self.steps:,} could not be written ({error}); training goes on, and the "
                f"checkpoints before it are whole"
            )
        else:
            self.saved_at = self.steps
            self.tracker.artifact(path, "checkpoints")
        self.meter.skip_pause()

    def last_checkpoint(self, stop: StopRequest) -> str | None:
        """Save what the run ends with, unless that was done; what went wrong, if it is not in the run's folder."""
        if self.saved_at == self.steps:
            return None
        path, fault = save_last(self._snapshot(), self.folder, self.config, self.display.note, stop)
        if path is not None:
            self.tracker.artifact(path, "checkpoints")
        if fault is not None:
            self.display.note(fault)
        return fault

    def _snapshot(self) -> Callable[[Path], Path]:
        """The state now, as what writes it under a folder of checkpoints."""
        state = self.runner.state()
        parts = {"learner": state.learner}
        parts |= {f"worker-{i}": worker for i, worker in enumerate(state.workers) if worker is not None}
        run = {
            "steps": self.steps,
            "episodes": self.meter.episodes,
            "curriculum": self.curriculum.state(),
            "waiting_episodes": self.episodes.state(),
            "config": to_json(self.config.to_dict()),
            "tracking_run": self.key,
            "resumes_exactly": self.config.service.mode == "sync"
            and self.config.train.evaluation_environments == "own"
            and None not in state.workers,
        }
        return lambda root: save_checkpoint(root, self.steps, run, parts, self.config.checkpoint.keep)

    def draw(self) -> None:
        facts = self.blueprint.facts
        try:
            draw_learning_curve(
                self.folder.history(),
                self.folder.curve,
                title=f"{self.config.env.id}, {self.config.policy.controller.kind}, {self.config.learner.mode}",
                references={
                    "optimal": facts.optimal_return,
                    "without memory": facts.memoryless_return,
                    "chance": facts.chance_return,
                }
                if facts
                else {},
            )
        except OSError as error:
            self.display.note(f"the learning curve could not be drawn: {error}")
        else:
            self.tracker.artifact(self.folder.curve)


def train(config: Config, *, preset: Path | None = None, local: bool = False, display: Display | None = None) -> Result:
    """Train from the beginning.

    Args:
        config: what to train.
        preset: the file that the configuration came from, for the run's name.
        local: run everything in this process, without Ray.
        display: where progress is shown; a new one by default.

    Raises:
        ConfigError, ServiceError, EnvironmentFailure, FloatingPointError, OSError: each with one sentence for the user.
    """
    config = config.changed("tracking", uri=absolute_uri(config.tracking.uri)).as_recorded()
    folder = RunFolder.new(config, preset)
    return _execute(_checked(config, local), folder, None, local, display or Display())


def resume(
    path: Path,
    *,
    total_steps: int | None = None,
    local: bool = False,
    trust: bool = False,
    display: Display | None = None,
) -> Result:
    """Go on with a run under its own configuration, in its own folder and its own tracking run.

    Args:
        path: a run folder or one of its checkpoints.
        total_steps: train for this many environment steps in all instead of the configured number.
        trust: import what the run names, whoever wrote it, and join the cluster and open the store that it names.

    Raises:
        CheckpointError: there is no usable checkpoint. Else as `train`.
    """
    display = display or Display()
    folder = RunFolder.of(path)
    folder.refuse_if_in_use()
    path, saved, config = load_run(path, display.note, trust)
    if not trust:
        refuse_foreign_places(config, path, folder.path, local)
    if total_steps is not None:
        config = config.changed("train", total_steps=total_steps)
    if saved.run["steps"] >= config.train.total_steps:
        raise ConfigError(
            f"{path} is complete at step {saved.run['steps']}; to train for longer, give train.total_steps=N above that"
        )
    blueprint = _checked(config, local)
    state = checked_state(path, saved, blueprint)
    return _execute(blueprint, folder, (saved.run, state), local, display)


def _checked(config: Config, local: bool) -> Blueprint[Config]:
    if local and config.service.mode == "async":
        raise ConfigError("service.mode is async, which needs Ray's actors; leave --local out or set service.mode=sync")
    blueprint = make_blueprint(config)
    if not local:
        _check_sendable(config)
    if local or config.service.cluster() is None:  # learning runs here
        try:
            blueprint.policy().controller.check_backend(resolve_device(config.learner.device))
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return blueprint


def _check_sendable(config: Config) -> None:
    """Refuse code that Ray's workers cannot have."""
    kind = config.policy.controller.kind
    if kind.startswith("__main__:"):
        raise ConfigError(
            f"policy.controller.kind is {kind!r}, which Ray's workers cannot import from a notebook or a script; put "
            f"it into a module of its own, or train without Ray: --local"
        )
    try:
        check_sendable(config.env.id)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _execute(
    blueprint: Blueprint[Config],
    folder: RunFolder,
    saved: tuple[dict[str, Any], RunState] | None,
    local: bool,
    display: Display,
) -> Result:
    config, name = blueprint.config, folder.path.name
    with ExitStack() as stack:
        stack.enter_context(display)
        stack.enter_context(warnings_noted(display.note))
        display.start(config.train.total_steps, title=name)
        display.note(f"observed: {'; '.join(blueprint.observed)}")
        compile_ahead(blueprint.policy().controller, config.policy.controller.kind, display.note)
        runner = _make_runner(blueprint, local, display.note)
        stack.callback(runner.close)
        if saved is None:
            folder.create()
        stack.enter_context(folder.lock(display.note))
        # The runner's parts start in the background, and so does tracking.
        key = (saved[0]["tracking_run"] if saved else None) or uuid4().hex
        tracker = Tracker(
            config.tracking, Identity(key, folder.path.resolve(), saved is not None), params=_parameters(blueprint)
        )
        status = stack.enter_context(_closing(tracker))
        tracker.artifact(folder.write_config(config))
        meter, curriculum = Meter(config.rollout.workers), Curriculum(config.curriculum)
        run = _Run(blueprint, folder, runner, display, tracker, key, meter, curriculum)
        runner.start()
        if saved is not None:
            _restore(run, *saved)
        tracker.follow(folder.metrics, run.steps if saved else None)
        stop = stack.enter_context(stopping_on_signals(display.note))
        run.meter.skip_pause()
        complete = _loop(run, stop)
        fault = run.last_checkpoint(stop)
        evaluation = run.evaluate(Look.RESULT) if complete else None
        run.draw()
        if fault is not None:
            raise OSError(fault)  # with this the run has failed, whatever it learned
        status.value = "FINISHED" if complete else "KILLED"
    return Result(folder.path, run.steps, evaluation, not complete, run.meter)


def _loop(run: _Run, stop: StopRequest) -> bool:
    """Update until done, evaluating and saving when due; whether it was done when it ended, or was stopped."""
    train, every = run.config.train, run.config.checkpoint.every
    next_checkpoint = _next_multiple(run.steps, every)
    next_evaluation = _next_multiple(run.steps, train.evaluate_every)
    for update in _updates(run):
        run.steps += update.report.steps
        episodes = run.episodes.release(update.deliveries)
        row = run.meter.row(update, episodes)
        if run.config.curriculum.stages:
            row["curriculum/level"] = float(run.curriculum.level)
        run.record(row)
        run.show(update, row)
        run.seems_endless()
        if run.curriculum.advance(episodes):  # before any return, as the last checkpoint holds its counts
            run.enter_level()
        if run.steps >= train.total_steps:
            return True
        if stop.made:
            return False
        if run.steps >= next_checkpoint:
            next_checkpoint = _next_multiple(run.steps, every)
            run.checkpoint()
        promising = math.inf if train.stop_success is None else train.stop_success - _EXPLORATION
        seems_solved = run.curriculum.complete and row["success"] >= promising
        if seems_solved or run.steps >= next_evaluation:
            next_evaluation = _next_multiple(run.steps, train.evaluate_every)
            if run.solved():
                return True
    raise AssertionError("a service loop never ends by itself")


def _next_multiple(step: int, every: int | None) -> float:
    return math.inf if every is None else (step // every + 1) * every


def _updates(run: _Run) -> Iterator[Update]:
    service = run.config.service
    if service.mode == "sync":
        return synchronous(run.runner, Replay(service.replay_bytes, max_lag=0), service.max_restarts)
    from mneme.distributed.ray_runner import RayRunner

    assert isinstance(run.runner, RayRunner)
    return asynchronous(run.runner, Replay(service.replay_bytes, service.max_lag))


def _make_runner(blueprint: Blueprint[Config], local: bool, note: Callable[[str], None]) -> Runner:
    if local:
        return LocalRunner(blueprint, note)
    from mneme.distributed.ray_runner import RayRunner  # only here: a local run needs no Ray

    return RayRunner(blueprint, note)


def _restore(run: _Run, saved: dict[str, Any], state: RunState) -> None:
    run.runner.set_state(state)
    run.steps = saved["steps"]
    run.meter.episodes = saved["episodes"]
    run.curriculum.set_state(saved["curriculum"])
    run.episodes.set_state(saved.get("waiting_episodes", ()))
    run.runner.level = run.curriculum.level
    run.folder.rewind(run.steps)
    set_aside_after(run.folder.checkpoints, run.steps)
    run.display.note(f"resuming {run.folder.path} from step {run.steps:,}")
    total = run.config.train.total_steps
    if run.config.learner.anneal and saved["config"]["train"]["total_steps"] != total:
        run.display.note(
            f"train.total_steps was {saved['config']['train']['total_steps']:,}: learner.anneal goes on from the "
            f"learning rate of the last update and falls to zero at step {total:,}"
        )
    if None in state.workers:
        run.display.note("this run resumes with new episodes: the state of its environment cannot be read")
    elif run.config.train.evaluation_environments == "training":
        run.display.note(
            "this run resumes with the episodes at the checkpoint, which an evaluation after it may have broken off: "
            "train.evaluation_environments is training"
        )
    elif not saved["resumes_exactly"]:
        run.display.note(
            "this run resumes without the fragments that were under way: asynchronous service is not exact"
        )


def _parameters(blueprint: Blueprint[Config]) -> dict[str, Any]:
    """The resolved configuration, and what was derived from the environment, for tracking."""
    spec = blueprint.spec
    derived = {
        "horizon": blueprint.horizon,
        "observations": {name: str(part) for name, part in spec.observations.items()},
        "actions": str(spec.actions),
    }
    return blueprint.config.to_dict() | {"derived": derived}


@dataclass
class _Status:
    value: RunStatus = "FAILED"


@contextmanager
def _closing(tracker: Tracker) -> Iterator[_Status]:
    status = _Status()
    try:
        yield status
    finally:
        tracker.close(status.value)
