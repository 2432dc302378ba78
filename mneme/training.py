"""One training run from configuration to verdict: build the parts, restore, loop, look, keep, let go."""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow as pa

from mneme.active_run import ActiveRun
from mneme.callbacks import Callback, Callbacks, Look, Outcome, RunStart, checked
from mneme.configuration.config import Config, difference
from mneme.controllers.compilation import compile_policy
from mneme.curriculum import Curriculum
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.replay import Replay
from mneme.distributed.runners import LocalRunner, OverlappingRunner, Runner, RunState
from mneme.distributed.service import Update, asynchronous, synchronous
from mneme.interruption import StopRequest, interrupted_by_sigterm, stopping_on_signals
from mneme.learner import NonfiniteGradient
from mneme.mode_schedule import ModeSchedule
from mneme.readiness import check_memory, checked_blueprint
from mneme.reporting.boards import boards_of
from mneme.reporting.curves import LearningCurve
from mneme.reporting.display import Display
from mneme.reporting.meter import Meter
from mneme.reporting.ray_export import RayExport
from mneme.reporting.run_log import RunLog
from mneme.reporting.tracking.callback import Tracking
from mneme.reporting.tracking.settings import absolute_uri
from mneme.resumption import NothingLeft, changed, left_to_do
from mneme.rollout_workers import Evaluation
from mneme.storage.checkpoint import list_checkpoints, set_aside_after
from mneme.storage.fetching import brought_home, fetched, source_of
from mneme.storage.mirror import Mirror
from mneme.storage.paths import pasted
from mneme.storage.restoring import checked_state, load_run
from mneme.storage.retention import Best
from mneme.storage.run_folder import RunFolder
from mneme.storage.starting import as_begun, started
from mneme.storage.trust import refuse_foreign_places
from mneme.storage.uri import below

_log = logging.getLogger(__name__)

_EXPLORATION = 0.03  # success that sampled actions may cost a policy whose greedy form succeeds


class Run(NamedTuple):
    """A run that has ended."""

    folder: Path
    steps: int  # environment steps trained on, since the run's very beginning
    evaluation: Evaluation | None  # at the end; None if the run was interrupted, or it came to no result
    interrupted: bool

    def __repr__(self) -> str:
        return f"Run(folder={str(self.folder)!r}, steps={self.steps:,}, evaluation={self.evaluation!r})"

    def history(self) -> pa.Table:
        """Its metrics, oldest first: a row for every update and evaluation, with `step`, and null for what has no
        value. docs/metrics.md lists the columns; `history().to_pandas()` is pandas' form."""
        folder = RunFolder(self.folder)
        if not folder.metrics.exists():
            raise FileNotFoundError(f"{folder.metrics} is gone")
        rows = folder.history()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in columns})


def train(
    config: Config,
    *,
    preset: Path | None = None,
    local: bool = False,
    go_on: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
) -> Run:
    """Train from the beginning.

    Args:
        config: what to train.
        preset: the file that the configuration came from, for the run's name.
        local: run everything in this process, without Ray.
        go_on: go on with the run of that name and configuration, if it has begun.
        callbacks: told what happens; see `Callback`.
        progress: show the run on standard output.

    Raises:
        ConfigError, ServiceError, EnvironmentFailure, FloatingPointError, OSError: each with one sentence for the user.
        Exception: what a callback raised, once the run has ended.
    """
    with _audience(callbacks, progress) as audience:
        config = config.changed("tracking", uri=absolute_uri(config.tracking.uri)).as_recorded()
        if go_on:
            folder = RunFolder.named(config)
            folder.discard_beginning()
            mirror = config.checkpoint.mirror
            if mirror is not None and not folder.path.exists():
                fetched(below(mirror, folder.path.name), folder)
            if list_checkpoints(folder.checkpoints):
                return _go_on(config, folder, local, audience)
        folder = RunFolder.new(config, preset)
        return _execute(started(checked_blueprint(config, local)), folder, None, local, audience)


def _go_on(config: Config, folder: RunFolder, local: bool, audience: list[Callback]) -> Run:
    """Go on with a run whose whole configuration the user has given again, and so vouches for what it names."""
    folder.refuse_if_in_use()
    path, saved, recorded = load_run(folder.path, trust=True)
    config = as_begun(config, recorded)
    blueprint = checked_blueprint(config.changed("learner", num_threads=recorded.learner.num_threads), local)
    before, asked = recorded.train, blueprint.config.train
    until = {"total_timesteps": before.total_timesteps, "stop_success": before.stop_success}
    given = blueprint.config.changed("train", **until).without_password()
    if different := difference(given, recorded.without_password()):
        raise ConfigError(
            f"{folder} was begun with {different}; go on with it as it is: --resume {pasted(folder.path)}, or choose "
            f"another name=..."
        )
    try:
        run = left_to_do(folder, saved.run, recorded, blueprint.config, asked=asked != before)
    except NothingLeft as done:
        _log.info(str(done))
        return Run(folder.path, saved.run["steps"], None, interrupted=False)
    return _execute(blueprint, folder, (run, checked_state(path, saved, blueprint)), local, audience)


def resume(
    path: Path,
    *changes: str,
    local: bool = False,
    trust: bool = False,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
) -> Run:
    """Go on with a run under its own configuration, but for a few settings, in its own folder and its own tracking run.

    Args:
        path: a run folder or one of its checkpoints, or the URI of either in a mirror, which is brought home first.
        changes: settings as `key=value` that replace the run's own: `train.total_timesteps`, `train.stop_success`,
            which null lifts, and `learner.replicas`.
        trust: import what the run names, whoever wrote it, and join the cluster and open the store that it names.
        local, callbacks, progress: as for `train`.

    Raises:
        CheckpointError: there is no usable checkpoint.
        NothingLeft: the run has solved its task, or trained for its steps. Else as `train`.
    """
    with _audience(callbacks, progress) as audience:
        source = source_of(path)
        path = brought_home(path)
        folder = RunFolder.of(path)
        folder.refuse_if_in_use()
        path, saved, config = load_run(path, trust)
        begun, config = config, changed(config, changes)
        if not trust:
            refuse_foreign_places(config, path, folder.path, local, source and source.uri)
        run = left_to_do(folder, saved.run, begun, config, asked=True)
        blueprint = checked_blueprint(config, local)
        state = checked_state(path, saved, blueprint)
        return _execute(blueprint, folder, (run, state), local, audience)


@contextmanager
def _audience(callbacks: Iterable[Callback], progress: bool) -> Iterator[list[Callback]]:
    """Who is told what happens; the terminal, if it is among them, from now on, as there are sentences before a run."""
    heard = checked(callbacks)
    with Display() if progress else nullcontext() as display:
        yield heard if display is None else [display, *heard]


def _execute(
    blueprint: Blueprint[Config],
    folder: RunFolder,
    saved: tuple[dict[str, Any], RunState] | None,
    local: bool,
    callbacks: list[Callback],
) -> Run:
    config: Config = blueprint.config
    outcome: Outcome = "failed"
    others = boards_of(config.tracking.also)
    others += [] if config.checkpoint.mirror is None else [Mirror(config, folder, saved and saved[0])]
    compile_policy(blueprint.policy(), config.policy.controller.kind)
    check_memory(blueprint, local)
    with ExitStack() as stack:
        stack.enter_context(interrupted_by_sigterm())
        runner = _make_runner(blueprint, local)
        stack.callback(runner.close)
        if saved is None:
            folder.create()
        held = stack.enter_context(folder.lock())
        folder.write_config(config)
        key = (saved[0]["tracking_run"] if saved else None) or uuid4().hex
        stop = stack.enter_context(stopping_on_signals())
        log = stack.enter_context(RunLog(folder.log))
        exported = [] if local else [RayExport()]
        told = Callbacks([log, *exported, *callbacks, LearningCurve(), Tracking(), *others], stop)
        meter, curriculum = Meter(config.rollout.num_workers), Curriculum(config.curriculum)
        run = ActiveRun(blueprint, folder, runner, told, key, meter, curriculum, ModeSchedule(config.learner))
        stack.callback(lambda: told.end(run.progress, outcome))
        stack.callback(run.close)
        if not local:
            from mneme.distributed.failures import loss_of_ray

            stack.enter_context(loss_of_ray())
        # What is told may work in the background, and so do the runner's parts, which start meanwhile.
        told.start(RunStart(folder.path, blueprint, key, saved is not None))
        _log.info(f"observed: {'; '.join(blueprint.observed)}")
        runner.start()
        if saved is not None:
            _restore(run, *saved)
        told.begin(run.progress)
        run.meter.skip_pause()
        try:
            complete = _loop(run, stop)
        except NonfiniteGradient as error:
            raise FloatingPointError(run.keep_failed_update(error)) from None
        fault = run.last_checkpoint(stop)
        evaluation = run.evaluate(Look.RESULT) if complete else None
        if told.error is None:
            if fault is not None:
                raise OSError(fault)  # with this the run has failed, whatever it learned
            outcome = held.outcome = "complete" if complete else "stopped"
    if told.error is not None:
        raise told.error
    return Run(folder.path, run.steps, evaluation, not complete)


def _loop(run: ActiveRun, stop: StopRequest) -> bool:
    """Update until done, evaluating and saving when due; whether it was done when it ended, or was stopped."""
    train, every = run.config.train, run.config.checkpoint.every
    next_checkpoint = _next_multiple(run.steps, every)
    next_evaluation = _next_multiple(run.steps, train.evaluate_every)
    if run.ended or (run.evaluation_due and run.solved()):
        return True
    for update in _updates(run):
        episodes, row = run.count(update)
        run.settle(wait=False)
        run.seems_endless()
        if run.curriculum.advance(episodes):  # before any return, as the last checkpoint holds its counts
            run.enter_level()
        run.ended = run.steps >= train.total_timesteps
        if run.ended:
            return True
        promising = math.inf if train.stop_success is None else train.stop_success - _EXPLORATION
        probed = row.get("probe/success", -math.inf) >= (train.stop_success or math.inf)
        seems_solved = run.curriculum.complete and (probed or row["success"] >= promising)
        run.evaluation_due = seems_solved or run.steps >= next_evaluation
        if stop.made:
            return False
        if run.steps >= next_checkpoint:
            next_checkpoint = _next_multiple(run.steps, every)
            run.checkpoint()
        if run.evaluation_due:
            next_evaluation = _next_multiple(run.steps, train.evaluate_every)
            if run.solved():
                return True
    raise AssertionError("a service loop never ends by itself")


def _next_multiple(step: int, every: int | None) -> float:
    return math.inf if every is None else (step // every + 1) * every


def _updates(run: ActiveRun) -> Iterator[Update]:
    service = run.config.service
    if isinstance(run.runner, OverlappingRunner) and service.mode == "async":
        return asynchronous(run.runner, Replay(service.replay_bytes, service.max_lag))
    return synchronous(run.runner, Replay(service.replay_bytes, max_lag=0), service.max_restarts)


def _make_runner(blueprint: Blueprint[Config], local: bool) -> Runner:
    if local:
        return LocalRunner(blueprint)
    from mneme.distributed.ray_runner import RayRunner  # only here: a local run needs no Ray

    return RayRunner(blueprint)


def _restore(run: ActiveRun, saved: dict[str, Any], state: RunState) -> None:
    run.runner.set_state(state)
    run.steps = saved["steps"]
    run.meter.episodes = saved["episodes"]
    run.curriculum.set_state(saved["curriculum"])
    run.modes.set_state(saved["mode_schedule"])
    run.evaluation_due, run.ended = saved["evaluation_due"], saved["ended"]
    run.best = None if saved["best"] is None else Best(**saved["best"])
    run.episodes.set_state(saved["waiting_episodes"])
    run.runner.level = run.curriculum.level
    run.folder.rewind(run.steps, run.evaluation_due)
    set_aside_after(run.folder.checkpoints, run.steps)
    _log.info(f"resuming {run.folder} from step {run.steps:,}")
    total = run.config.train.total_timesteps
    schedules = ("lr_schedule", "clip_schedule", "ent_schedule")
    falling = [f"learner.{name}" for name in schedules if getattr(run.config.learner, name) != "constant"]
    if falling and saved["config"]["train"]["total_timesteps"] != total:
        _log.info(
            f"train.total_timesteps was {saved['config']['train']['total_timesteps']:,}: under {' and '.join(falling)} "
            f"the value of the last update falls to zero at step {total:,}"
        )
    absent = [worker for worker, known in enumerate(state.workers) if known is None]
    if len(absent) == len(state.workers):
        _log.info("this run resumes with new episodes: the state of its environment cannot be read")
    elif absent:
        _log.info(
            f"this run resumes with new episodes of {len(absent)} of its {len(state.workers)} rollout actors, which "
            f"were not there at the checkpoint"
        )
    elif run.config.train.evaluation_environments == "training":
        _log.info(
            "this run resumes with the episodes at the checkpoint, which an evaluation after it may have broken off: "
            "train.evaluation_environments is training"
        )
    elif not saved["resumes_exactly"]:
        _log.info("this run resumes without the fragments that were under way: asynchronous service is not exact")
