"""`mneme horizons`: a trained agent at horizons other than the one it was trained at."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mneme.agent import LoadedPolicy, load_policy
from mneme.distributed.config import ConfigError
from mneme.envs import horizon_of, make_vector_env
from mneme.evaluation import changed_task, evaluate_checkpoint
from mneme.reporting.curves import BLUE, GREY, INK, picture, plain_numbers
from mneme.rollout_workers import Evaluation
from mneme.storage.files import read_text, replace
from mneme.storage.paths import locate

_log = logging.getLogger(__name__)
_KEPT = "horizons.json"  # in a run's folder


class AtHorizon(NamedTuple):
    """What an agent achieves at one horizon."""

    horizon: int  # the value of the task's setting
    evaluation: Evaluation

    def line(self) -> str:
        """It in words."""
        low, high = self.evaluation.success_interval or (np.nan, np.nan)
        return f"{self.horizon:>9,}  success {self.evaluation.success_rate or 0.0:6.1%}  [{low:.1%}, {high:.1%}]"


class Horizons(NamedTuple):
    """An agent at several horizons."""

    setting: str  # of the task, which is the horizon
    trained: int  # its value in training
    points: tuple[AtHorizon, ...]


def horizon_setting(loaded: LoadedPolicy) -> tuple[str, int]:
    """The setting that is the horizon of an agent's task, and its value in training.

    Raises:
        ConfigError: the task does not say which one is.
    """
    env_settings = loaded.blueprint.config.env
    with closing(make_vector_env(env_settings, 1)) as env:
        own = horizon_of(env, env_settings.kwargs)
    if own is None:
        raise ConfigError(
            f"{env_settings.id} does not say which of its settings is the horizon; evaluate with the setting itself: "
            f"mneme evaluate {loaded.path} env.kwargs.NAME=VALUE"
        )
    if loaded.blueprint.facts is None and env_settings.success_return is None:
        raise ConfigError(
            f"{env_settings.id} does not say what success is; train with env.success_return, the return of a success"
        )
    return f"env.kwargs.{own[0]}", own[1]


def horizons_of(
    path: Path, horizons: Sequence[int], *, episodes: int = 256, seed: int = 0,
    num_envs: int | None = None, trust: bool = False, tell: Callable[[str], None] | None = None,
) -> Horizons:  # fmt: skip
    """Complete greedy episodes at each horizon, as `evaluate_checkpoint` runs them.

    Args:
        path: a run folder, or one of its checkpoints.
        horizons: values of the setting that is the horizon of the task.
        episodes: how many at each, at least.
        seed: of the episodes.
        num_envs: parallel environments; unset: as many as the run had.
        trust: import what the run names, whoever wrote it.
        tell: is told each result in words, as soon as it is known.

    Raises:
        ConfigError, CheckpointError, ValueError: as `horizon_setting` and `evaluate_checkpoint`.
    """
    loaded = load_policy(path, trust)
    setting, trained = horizon_setting(loaded)
    changes = {horizon: [f"{setting}={horizon}"] for horizon in horizons}
    for change in changes.values():  # all of them, before the first takes its time
        changed_task(loaded.blueprint, change)
    points = []
    for horizon, change in changes.items():
        found = evaluate_checkpoint(loaded, episodes=episodes, seed=seed, num_envs=num_envs, changes=change)
        points.append(AtHorizon(horizon, found))
        if tell is not None:
            tell(points[-1].line())
    return Horizons(setting, trained, tuple(points))


def keep_horizons(found: Horizons, path: Path) -> None:
    """Leave success by horizon in the folder of the run that a path means, for reports, in place of what was there; a
    checkpoint may lie in none, and a folder may be another's."""
    run, _ = locate(path)
    if run is None:
        return
    success = {point.horizon: point.evaluation.success_rate for point in found.points}
    try:
        replace(run / _KEPT, json.dumps(success) + "\n")
    except OSError as error:
        _log.warning("what was found is not kept for mneme report: %s", error)


def kept_horizons(run: Path) -> list[tuple[int, float]]:
    """What was left in a run's folder; nothing if it cannot be read."""
    try:
        return [(int(horizon), float(success)) for horizon, success in json.loads(read_text(run / _KEPT)).items()]
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def draw_horizons(found: Horizons, path: Path, title: str) -> None:
    """Write a picture of success against the horizon, with 95 % intervals, and of the share of what memory can gain.

    Raises:
        OSError: it cannot be written.
        ValueError: the file's ending names no kind of picture.
    """
    with picture(path, 7, 3.5) as figure:
        axes = figure.subplots()
        horizons = np.array([point.horizon for point in found.points])
        intervals = np.array([point.evaluation.success_interval for point in found.points])
        rates = np.array([point.evaluation.success_rate for point in found.points], np.float64)
        axes.plot(horizons, rates, "o-", color=BLUE, label="success")
        axes.fill_between(horizons, *intervals.T, color=BLUE, alpha=0.15, linewidth=0)
        shares = [point.evaluation.normalized_return for point in found.points]
        axes.plot(horizons, shares, ":", color=GREY, label="return, 0 without memory, 1 the best")
        axes.axvline(found.trained, color=INK, linestyle="--", linewidth=0.8, label="trained at")
        axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel=found.setting, ylabel="success", title=title)
        plain_numbers(axes.xaxis)
        axes.legend()
