"""A sweep's file, read and checked: every configuration that it will try, or of a search that learns a sample of them,
is one that a run takes."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mneme.configuration.config import Config, insert, overridden, parse_config
from mneme.configuration.presets import EXTENDS, SWEEPS, find_preset, merged, read_preset
from mneme.controllers import hints_of
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.config import ConfigError
from mneme.distributed.search_space import Range, Space, Trial
from mneme.envs import EnvironmentFailure, TaskFacts
from mneme.experiments.sweep.settings import SweepSettings, space_of, sweep_settings
from mneme.readiness import check_memory, checked_blueprint, reach_warned_of_once
from mneme.reporting.meter import evaluation_row
from mneme.reporting.tracking.settings import TrackingSettings, absolute_uri
from mneme.rollout_workers import Evaluation
from mneme.storage.starting import start_of, with_known

SECTION = "sweep"
_OWN = {
    "seed": "set sweep.seeds to a number of them",
    "name": "runs are named by their configuration",
    "checkpoint.root": "runs lie in the sweep's folder",
}  # settings that a sweep gives each trial, and what to do instead
_ALL_KNOWN = TaskFacts(0, None, optimal_return=1, memoryless_return=0, chance_return=0, success_return=1)
_SAMPLE = 32  # points of a space that are tried out where a search chooses others later


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Enough to make the configuration of any trial, on any machine."""

    sweep: SweepSettings
    space: Space
    tree: Mapping[str, Any]  # settings of every trial
    bases: Mapping[Any, Mapping[str, Any]]  # of the presets that `extends` may be, by its value
    folder: Path  # full
    store: str  # tracking.uri, as it is understood from anywhere
    starts: Mapping[str, str] = field(default_factory=dict)
    """Very checkpoints for what `train.start_from` may be; see `with_known`."""

    def config(self, trial: Trial) -> Config:
        """The configuration of a trial's run.

        Raises:
            ConfigError: it is none.
        """
        tree = deepcopy(merged(self.bases[trial.point[EXTENDS]] if EXTENDS in trial.point else {}, self.tree))
        for key, value in trial.point.items():
            if key != EXTENDS:
                insert(tree, key, value)
        for key, value in {"seed": trial.seed, "name": run_name(trial), "checkpoint.root": str(self.folder)}.items():
            insert(tree, key, value)
        config = parse_config(tree)
        parent = config.tracking.parent or self.folder.name
        config = with_known(config.changed("tracking", uri=self.store, parent=parent), self.starts)
        return config if config.learner.num_threads else config.changed("learner", num_threads=1)

    @property
    def seed(self) -> int:
        """Of the first run of each configuration, and of what is drawn."""
        seed = self.tree.get("seed", 0)
        return seed if isinstance(seed, int) else 0

    @property
    def seeds(self) -> range:
        """Of each configuration."""
        return range(self.seed, self.seed + self.sweep.seeds)


def run_name(trial: Trial) -> str:
    """The name of a trial's run, and of its folder."""
    return f"{trial.number:03d}-seed{trial.seed}"


def described(point: Mapping[str, Any]) -> str:
    """A point in words."""
    return ", ".join(f"{key}={shown(value)}" for key, value in point.items())


def shown(value: Any) -> str:
    """A value as people read it, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def find_sweep(word: str) -> Path:
    """The file that a word means: one of the user's, else one that comes with Mneme, else a preset.

    Raises:
        ConfigError: there is none.
    """
    given = Path(word)
    ours = [given, given.with_suffix(".yaml"), SWEEPS / given.with_suffix(".yaml").name]
    found = next((path for path in ours if path.is_file()), None)
    if found is not None:
        return found
    names = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
    try:
        return find_preset(word)
    except ConfigError:
        raise ConfigError(f"there is no file {word}, and no sweep of that name; there are {', '.join(names)}") from None


def make_plan(path: Path | None, overrides: Sequence[str], search: Mapping[str, Any], folder: Path) -> Plan:
    """Read a sweep's file, changed by `key=value` overrides, `sweep.key=value` among them, and by `search`.

    Raises:
        ConfigError: one sentence for each thing that is wrong.
    """
    tree = overridden(deepcopy(read_preset(path)) if path is not None else {}, overrides)
    section = tree.pop(SECTION, None)
    if own := [name for name in tree if name in hints_of(SweepSettings)]:
        raise ConfigError(f"unknown setting {own[0]} (given {tree[own[0]]!r}); did you mean {SECTION}.{own[0]}?")
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(f"{SECTION} is {section!r}; it is a section: set what it holds, such as sweep.space")
    sweep = sweep_settings({**(section or {}), **search})
    space = space_of(sweep)
    for key in space:
        if key in _OWN or key.startswith(("tracking.", "service.")):
            remedy = _OWN.get(key, "set it for all trials")
            raise ConfigError(f"sweep.space has {key}, which a sweep does not search; {remedy}")
    checkpoint = tree.get("checkpoint")
    if tree.get("name") or (isinstance(checkpoint, Mapping) and "root" in checkpoint):
        key = "name" if tree.get("name") else "checkpoint.root"
        raise ConfigError(f"{key} is what a sweep sets by itself; name the sweep with --name")
    presets = space.get(EXTENDS, ())
    if isinstance(presets, Range):
        raise ConfigError(f"sweep.space.{EXTENDS} is a range; list presets")
    bases = {word: read_preset(find_preset(str(word), path.parent if path else Path())) for word in presets}
    tracking = tree.get("tracking")
    given = tracking.get("uri") if isinstance(tracking, Mapping) else None
    store = absolute_uri(given if isinstance(given, str) and given else TrackingSettings.uri)
    return Plan(sweep=sweep, space=space, tree=tree, bases=bases, folder=folder, store=store)


def trials_of(plan: Plan) -> list[Trial]:
    """The trials of a grid or a random search, seed after seed, so that one that is stopped early has compared
    everything; of another search none, as it chooses by what it finds."""
    if plan.sweep.search == "optuna":
        return []
    return [Trial(number, seed, point) for seed, (number, point) in product(plan.seeds, enumerate(_points(plan)))]


def stand_ins(plan: Plan) -> list[Trial]:
    """Trials that stand for all that a sweep may come to: those of a grid or a random search, one of each; of another
    search every value and bound in turn, and a sample."""
    points = [*_corners(plan.space), *_points(plan)] if plan.sweep.search == "optuna" else _points(plan)
    return [Trial(number, plan.seed, point) for number, point in enumerate(points)]


def _points(plan: Plan) -> list[Mapping[str, Any]]:
    from mneme.distributed.tuning import drawn  # Ray, only when there is a sweep

    number = _SAMPLE if plan.sweep.search == "optuna" else plan.sweep.trials
    return list(drawn(plan.space, grid=plan.sweep.search == "grid", number=number, seed=plan.seed))


def check_plan(plan: Plan) -> Plan:
    """Refuse what a trial would refuse, before anything starts; the plan with what trials start from.

    Raises:
        ConfigError: a configuration cannot run, or lacks the metric; in one sentence, which says which it is.
        EnvironmentFailure: an environment cannot be reset.
    """
    if plan.sweep.search == "optuna" and find_spec("optuna") is None:
        raise ConfigError("sweep.search is optuna, which is not installed: pip install mneme-rl[train]")
    _check_metric(plan.sweep, metrics_of(_ALL_KNOWN, has_success=True))  # of any task, before one is made
    starts = dict(plan.starts)
    with reach_warned_of_once():
        for trial in stand_ins(plan):
            try:
                start = _checked_start(plan, trial)
            except (ConfigError, EnvironmentFailure) as error:
                raise _blaming(plan, trial, error) from None
            if start is not None:
                starts.setdefault(*start)
    return replace(plan, starts=starts)


def _checked_start(plan: Plan, trial: Trial) -> tuple[str, str] | None:
    """Refuse a trial, or have what it starts from: as it is given, and the very checkpoint."""
    config = plan.config(trial)
    blueprint = _check(config, plan.sweep)
    given = config.train.start_from
    start = None if given in plan.starts.values() else start_of(blueprint)  # else it was seen to before
    return None if given is None or start is None else (given, start.named)


def _blaming(plan: Plan, trial: Trial, error: Exception) -> Exception:
    """The refusal of a trial, with its point in front unless it is refused in the same words without that."""
    try:
        _checked_start(plan, trial._replace(point={}))
    except (ConfigError, EnvironmentFailure) as without:
        if str(without) == str(error):
            return error
    return type(error)(f"with {described(trial.point)}: {error}")


def _corners(space: Space) -> Iterator[Mapping[str, Any]]:
    """Each setting's values and bounds in turn, where the others are at their first."""
    ends = {key: (values.low, values.high) if isinstance(values, Range) else values for key, values in space.items()}
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        for value in values:
            whole = isinstance(bounds := space[key], Range) and bounds.whole
            yield {**first, key: int(value) if whole else value}


def _check(config: Config, sweep: SweepSettings) -> Blueprint[Config]:
    """Refuse a trial, or have what it is built from."""
    for key, value, only in (
        ("service.mode", config.service.mode, "sync"),
        ("learner.replicas", config.learner.replicas, 1),
    ):
        if value != only:
            raise ConfigError(f"{key} is {value}, and a trial of a sweep is one process; set {key}={only}")
    if sweep.early_stopping != "none" and config.train.evaluate_every is None:
        raise ConfigError(
            f"sweep.early_stopping is {sweep.early_stopping}, which looks at regular evaluations; set "
            f"train.evaluate_every={max(1, config.train.total_timesteps // 10)}"
        )
    blueprint = checked_blueprint(config, local=False)  # trials are other processes, on the cluster's machines if any
    check_memory(blueprint, local=False)
    _check_metric(sweep, metrics_of(blueprint.facts, config.env.success_return is not None))
    return blueprint


def _check_metric(sweep: SweepSettings, known: Sequence[str]) -> None:
    if sweep.metric not in known:
        raise ConfigError(f"sweep.metric is {sweep.metric}, which no evaluation has; there are {', '.join(known)}")


def metrics_of(facts: TaskFacts | None, has_success: bool) -> list[str]:
    """The metrics that an evaluation of a task has."""
    two = np.arange(2)
    success = two.astype(bool) if facts is not None or has_success else np.empty(0, bool)
    return list(
        evaluation_row(Evaluation(two.astype(float), two, success, two.astype(np.uint64), facts), "evaluation/")
    )
