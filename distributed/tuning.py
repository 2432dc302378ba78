"""A sweep's trials on Ray Tune: what is tried, where it runs, and what ends early.

Tune schedules and searches. Its own files, which hold pickles, lie in a temporary folder and are never read: what a
sweep goes on with is in the runs' folders and in what the listener keeps.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.variant_generator import generate_variants

from mneme.distributed.ray_runner import start_ray
from mneme.distributed.runners import ServiceError
from mneme.distributed.search_space import Begin, Listener, Range, Report, Space, Trial
from mneme.distributed.settings import ServiceSettings

_HEARTBEAT = 2.0  # seconds after which a trial is heard of at the latest, and can be told to stop
_RESTARTS = 3  # of a trial whose process was lost
_NEVER = 1 << 60  # steps after which a trial would pause for others
_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # whose silence is not silent
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # whoever sweeps listens to signals
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a heartbeat has no metric
}

Goal = Literal["max", "min"]


class Past(NamedTuple):
    """A trial that has ended, for those who learn from it."""

    trial: Trial
    curve: Sequence[tuple[int, float]]  # steps and metric at each evaluation, the last one included


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """When a trial that does worse than others is given up."""

    rule: Literal["none", "asha", "median"]
    grace: int  # environment steps that every trial is given
    longest: int  # environment steps of the longest trial
    reduction_factor: float  # asha: one in so many goes on at each rung


def drawn(space: Space, *, grid: bool, number: int, seed: int) -> Iterator[Mapping[str, Any]]:
    """Every combination of a space without ranges, or `number` points of a space at random, by Tune's own generator.

    The first points are the same whatever `number` is.
    """
    random = np.random.RandomState(seed)
    spec = {name: _domain(values, grid) for name, values in space.items()}
    for _ in range(1 if grid else number):
        for _, variant in generate_variants(spec, random_state=random):
            yield _decoded(space, variant)


def _domain(values: tuple[Any, ...] | Range, grid: bool = False) -> Any:
    """A setting as Tune has it; of values, which may be of any type, their number."""
    if not isinstance(values, Range):
        numbers = list(range(len(values)))
        return tune.grid_search(numbers) if grid else tune.choice(numbers)
    if values.whole:
        return (tune.lograndint if values.log else tune.randint)(int(values.low), int(values.high) + 1)
    return (tune.loguniform if values.log else tune.uniform)(values.low, values.high)


def _decoded(space: Space, found: Mapping[str, Any]) -> dict[str, Any]:
    return {n: found[n] if isinstance(values, Range) else values[found[n]] for n, values in space.items()}


def _encoded(space: Space, point: Mapping[str, Any]) -> dict[str, Any]:
    return {n: point[n] if isinstance(values, Range) else values.index(point[n]) for n, values in space.items()}


@contextmanager
def ray_for(service: ServiceSettings, demands: Iterable[Mapping[str, float]]) -> Iterator[None]:
    """A Ray that has room for trials: the cluster that is named, or one of our own, which is stopped in the end.

    Args:
        service: names the cluster.
        demands: of one trial each, asked for once Ray is there.

    Raises:
        ServiceError: there is no Ray, or one of our own which is too small for one of them.
    """
    ours = start_ray(service, workers=0)
    try:
        present = ray.cluster_resources()
        for name, wanted in ((name, amount) for demand in demands for name, amount in demand.items()):
            if ours and wanted > present.get(name, 0.0):  # a cluster may grow
                raise ServiceError(
                    f"a trial asks for {wanted:g} {name} and Ray has {present.get(name, 0.0):g}; lower "
                    f"learner.num_threads, service.learner_gpus or service.learner_resource, or join a cluster"
                )
        yield
    finally:
        if ours:
            ray.shutdown()


def gpus() -> float:
    """GPUs of the Ray at hand."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def run_trials(
    begin: Begin,
    listener: Listener,
    stop: Callable[[], bool],
    *,
    trials: Sequence[Trial],
    study: "Study | None",
    demand: Callable[[Trial], Mapping[str, float]],
    metric: str,
    goal: Goal,
    stopping: EarlyStopping,
    past: Sequence[Past],
    concurrent: int | None,
) -> None:
    """Run trials, as many at once as there is room for, each in an actor of its own.

    Args:
        begin: starts a trial in its actor.
        listener: told in this process.
        stop: asked often; once it is true everything ends, each trial with a checkpoint if that takes seconds.
        trials: to be run, in this order; those of a study, which chooses others besides, come first.
        study: what chooses trials by what others came to, if anything does.
        demand: Ray's resources that a trial takes.
        metric: in the reports, by which trials are compared.
        goal: whether that is to be high or low.
        stopping: of trials that do worse.
        past: what has ended before, for `study` and `stopping`.
        concurrent: trials at once, at most.
    """
    os.environ.update(_SETTINGS)
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    trainable: Any = tune.with_parameters(_Actor, begin=begin)
    trainable = tune.with_resources(
        trainable, lambda config: tune.PlacementGroupFactory([dict(demand(_trial(config)))])
    )
    with TemporaryDirectory(prefix="mneme-tune-") as folder:
        tune.Tuner(
            trainable,
            param_space={"trial": tune.grid_search([trial._asdict() for trial in trials])} if study is None else {},
            tune_config=tune.TuneConfig(
                num_samples=1 if study is None else study.number,
                search_alg=None if study is None else _Optuna(study, trials, past, metric, goal),
                scheduler=_scheduler(stopping, metric, goal, past),
                max_concurrent_trials=concurrent,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                stop=_Stopper(stop),
                callbacks=[_Told(listener, metric)],
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            ),
        ).fit()


def _trial(config: Mapping[str, Any]) -> Trial:
    return Trial(**config["trial"])


class _Actor(tune.Trainable):
    """A trial's actor."""

    def setup(self, config: dict[str, Any], begin: Begin) -> None:  # type: ignore[override]  # see with_parameters
        self._process = begin(_trial(config))

    def step(self) -> Report:
        return self._process.report(_HEARTBEAT)

    def cleanup(self) -> None:
        self._process.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run's folder has it."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the run's folder has it."""


class _Here:
    """Something of this process, of which Tune's pickles, which nobody reads, get nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Stopper(_Here, tune.Stopper):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: Report) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop()


class _Told(_Here, tune.Callback):
    """Passes on what happens."""

    def __init__(self, listener: Listener, metric: str) -> None:
        self._listener, self._metric = listener, metric

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._listener.started(_trial(trial.config))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Report, **info: Any) -> None:
        if self._metric in result:
            self._listener.reported(_trial(trial.config), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._listener.ended(_trial(trial.config), trial.last_result, None)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        reason = str(trial.get_pickled_error() or "its process was lost").strip().rpartition("\n")[2]
        self._listener.ended(_trial(trial.config), trial.last_result, reason)


class Study(NamedTuple):
    """A search that learns from what was tried."""

    space: Space
    number: int  # of trials to begin now
    first: int  # number of the first new one
    seed: int  # of the search, and of the runs


class _Optuna(OptunaSearch):
    """Optuna's tree-structured Parzen estimator, which goes on with what earlier processes tried.

    Args:
        begun: trials that have begun and not ended, which come first.
        past: trials that have ended.
    """

    def __init__(self, study: Study, begun: Sequence[Trial], past: Sequence[Past], metric: str, goal: Goal) -> None:
        self._study, self._begun, self._next = study, list(begun), study.first
        domains = {name: _domain(values) for name, values in study.space.items()}
        import optuna  # an extra: whoever asks for it has it

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        super().__init__(
            space=self.convert_search_space(domains),
            metric=metric,
            mode=goal,
            seed=study.seed + study.first,  # one that goes on draws others than before
            points_to_evaluate=[_encoded(study.space, trial.point) for trial in begun],
        )
        for trial, curve in past:
            if curve:
                self.add_evaluated_point(_encoded(study.space, trial.point), curve[-1][1])

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        found = super().suggest(trial_id)
        if found is None:
            return None
        if self._begun:
            return {"trial": self._begun.pop(0)._asdict()}
        self._next += 1
        return {"trial": Trial(self._next - 1, self._study.seed, _decoded(self._study.space, found))._asdict()}

    def on_trial_result(self, trial_id: str, result: Report) -> None:
        """Nothing, as what lies between serves only Optuna's own pruners."""


def _scheduler(stopping: EarlyStopping, metric: str, goal: Goal, past: Sequence[Past]) -> TrialScheduler:
    """What ends trials early, with all that it would know had the trials of the past run under it."""
    nobody: Any = None  # in the place of Tune's controller
    told: list[tuple[Any, list[Report]]] = [
        (_Ended(f"past-{number}"), [{"steps": steps, metric: value} for steps, value in curve])
        for number, (_, curve) in enumerate(past)
    ]
    if stopping.rule == "asha":
        asha = AsyncHyperBandScheduler(
            time_attr="steps",
            metric=metric,
            mode=goal,
            grace_period=min(stopping.grace, stopping.longest),
            max_t=stopping.longest,
            reduction_factor=stopping.reduction_factor,
            stop_last_trials=False,
        )
        for ended, reports in told:
            asha.on_trial_add(nobody, ended)
            for report in reports:
                asha.on_trial_result(nobody, ended, report)
        return asha
    if stopping.rule == "median":
        median = MedianStoppingRule(
            time_attr="steps", metric=metric, mode=goal, grace_period=stopping.grace, min_time_slice=_NEVER
        )
        for ended, reports in told:
            for report in reports:
                median.on_trial_complete(nobody, ended, report)  # which judges nobody
        return median
    return FIFOScheduler()


class _Ended(NamedTuple):
    """A trial of the past, as a scheduler knows it."""

    trial_id: str
