"""Checks of a checkpoint before anything of it is used, for evaluating as for resuming.

Its files match their checksums, which says that they are what somebody wrote, not that it was a run of ours. So every
array is held against those that a fresh learner and fresh workers of the same configuration have, and tried out.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mneme.configuration.config import Config, parse_config
from mneme.configuration.records import same
from mneme.curriculum import Curriculum
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.runners import RunState
from mneme.distributed.workers import LearnerWorker, RolloutWorker
from mneme.episodes import EpisodeOrder
from mneme.mode_schedule import ModeSchedule
from mneme.rollout_workers.state import State
from mneme.storage.checkpoint import Checkpoint, CheckpointError, find_checkpoint
from mneme.storage.migration import migrated
from mneme.storage.paths import locate
from mneme.storage.retention import Best
from mneme.storage.trust import refuse_foreign_code

_NOT_NEGATIVE = re.compile(
    r"adam\.(step|exp_avg_sq)\..*|policy\..*\.(count|variance)|version|env_steps|(reward_scale|traces)\.expected"
    r"|nonfinite_in_a_row|warmup|bptt\.looks|level|step|incarnation|episode_step|env\.(episode|step)"
)
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of one parameter in Adam: all of them or none
_WAITING = "waiting."  # before the names of what waits to be packed: up to so many steps
_BY_LANE = re.compile(r"reward_scale\.(running|expected)|traces\..*")  # of the lanes up to the last that has been seen


def load_run(path: Path, trust: bool) -> tuple[Path, Checkpoint, Config]:
    """The checkpoint that a path means, and its configuration, which asks for no code that nobody here has chosen.

    Args:
        path: a run folder or one of its checkpoints.
        trust: whether any code may be asked for.

    Raises:
        CheckpointError: there is none, or it is not one that a run has written.
    """
    path, saved = find_checkpoint(path)
    for name, kind in (("steps", int), ("episodes", int), ("config", dict), ("resumes_exactly", bool)):
        value = saved.run.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise _strange(path, name, value)
    if not isinstance(saved.run.get("tracking_run"), str | None):
        raise _strange(path, "tracking_run", saved.run["tracking_run"])
    try:
        saved = migrated(saved)
        config = parse_config(saved.run["config"])
    except (ConfigError, yaml.YAMLError, RecursionError) as error:
        sentence = " ".join(str(error).split())
        raise CheckpointError(f"the checkpoint {path} has a configuration that cannot be used: {sentence}") from None
    if not trust:
        refuse_foreign_code(config, path, locate(path)[0] or path)
    return path, saved, config


def checked_state(path: Path, saved: Checkpoint, blueprint: Blueprint[Config]) -> RunState:
    """The arrays of a checkpoint, each of the name, type, shape and range that a run of its configuration has.

    Raises:
        CheckpointError: one is not; the sentence names it.
    """
    config, levels = blueprint.config, len(blueprint.config.curriculum.stages)
    _check_record(path, saved.run, config)
    names = [f"worker-{i}" for i in range(config.rollout.num_workers)]
    for part in saved.arrays:
        if part not in ("learner", *names):
            raise _misfit(path, f"{part} is unexpected; there are learner and {', '.join(names)}")
    learner, fresh = saved.arrays["learner"], LearnerWorker(_anywhere(blueprint))
    _check(path, "learner", learner, fresh.expected_state(), config.rollout.num_envs)
    _attempt(path, "learner", fresh.set_state, learner)
    workers = [saved.arrays.get(name) for name in names]
    for i, state in enumerate(workers):
        if state is None:
            continue
        worker = RolloutWorker(blueprint, i)
        try:
            level = {name: array for name, array in state.items() if name == "level"}
            _check(path, names[i], level, {"level": np.array(0)}, config.rollout.num_envs)
            if level["level"] > levels:
                raise _misfit(path, f"level in {names[i]} is {level['level']}; it must be at most {levels}")
            worker.enter(int(level["level"]))
            expected = worker.expected_state()
            if expected is None:
                raise _misfit(path, f"{names[i]} is unexpected, as the state of {config.env.id} cannot be read")
            own = not any(name.startswith("env.") for name in expected)
            judged = {name: array for name, array in state.items() if not (own and name.startswith("env."))}
            _check(path, names[i], judged, expected, config.rollout.num_envs)
            _attempt(path, names[i], worker.try_out, state)
        finally:
            worker.close()
    return RunState(learner, workers)


def _anywhere(blueprint: Blueprint[Config]) -> Blueprint:
    """A blueprint with the same names and shapes, for machines without the devices that the run has learned on."""
    config = blueprint.config.changed("learner", device="cpu")
    controller = replace(config.policy.controller, backend="auto")
    return blueprint._replace(config=config.changed("policy", controller=controller))


def _check_record(path: Path, run: Mapping[str, Any], config: Config) -> None:
    """Check what run.json holds of the curriculum, and of episodes that wait to be counted."""
    curriculum, stages = run.get("curriculum"), config.curriculum
    fits = False
    if isinstance(curriculum, dict) and curriculum.keys() == Curriculum(stages).state().keys():
        level, recent = curriculum["level"], curriculum["recent"]
        fits = type(level) is int and 0 <= level <= len(stages.stages) and isinstance(recent, list)
        fits = fits and len(recent) <= stages.episodes and all(type(success) is bool for success in recent)
    if not fits:
        raise _strange(path, "curriculum", curriculum)
    if not ModeSchedule(config.learner).fits(run["mode_schedule"]):
        raise _strange(path, "mode_schedule", run["mode_schedule"])
    for name in ("evaluation_due", "ended"):
        if not isinstance(run[name], bool):
            raise _strange(path, name, run[name])
    if run["best"] is not None and not Best.fits(run["best"]):
        raise _strange(path, "best", run["best"])
    waiting: Any = run.get("waiting_episodes")
    order = EpisodeOrder()
    try:
        order.set_state(waiting)
        kinds = (int, float, int, bool | None)
        plain = all(
            isinstance(value, kind)
            for entry in waiting
            for episode in entry["waiting"]
            for value, kind in zip(episode, kinds, strict=True)
        )
        fits = (
            plain
            and same(order.state(), waiting)
            and {entry["worker"] for entry in waiting} <= set(range(config.rollout.num_workers))
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        fits = False
    if not fits:
        raise _strange(path, "waiting_episodes", waiting)


def _check(path: Path, part: str, found: State, expected: State, lanes: int) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if name not in expected:
            raise _misfit(path, f"{name} in {part} is unexpected")
        if name not in found:
            parameter = name.removeprefix("adam.").partition(".")[2]
            if name.startswith("adam.") and not any(f"adam.{key}.{parameter}" in found for key in _MOMENTS):
                continue
            raise _misfit(path, f"{name} in {part} is missing")
        array, like = found[name], expected[name]
        by_lane = _BY_LANE.fullmatch(name) is not None
        shape = (lanes, *like.shape[1:]) if by_lane else like.shape
        fewer = by_lane or name.startswith(_WAITING)
        fits = array.shape == shape
        if fewer and array.ndim == len(shape):
            fits = len(array) <= shape[0] and array.shape[1:] == shape[1:]
        if array.dtype != like.dtype or not fits:
            wanted = f"{like.dtype} {list(shape)}{' or fewer' if fewer else ''}"
            raise _misfit(path, f"{name} in {part} is {array.dtype} {list(array.shape)}; it must be {wanted}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _misfit(path, f"{name} in {part} holds {array[~np.isfinite(array)].flat[0]}; it must be finite")
        if _NOT_NEGATIVE.fullmatch(name) and (array < 0).any():
            raise _misfit(path, f"{name} in {part} holds {array.min()}; it must be at least 0")


def _attempt(path: Path, part: str, take_up: Callable[[State], Any], state: State) -> None:
    try:
        take_up(state)
    except Exception as error:
        raise _misfit(path, f"{part} cannot be taken up: {' '.join(str(error).split())}") from error


def _misfit(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"the arrays of the checkpoint {path} do not fit its configuration: {what}")


def _strange(path: Path, name: str, value: Any) -> CheckpointError:
    return CheckpointError(f"the checkpoint {path} is damaged: {name} in its run.json is {repr(value)[:200]}")
