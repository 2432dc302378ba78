"""Runners own a run's parts, all in this process or as Ray actors. The service loops see only the `Runner`."""

import logging
import math
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol, runtime_checkable

from mneme.controllers import Weights
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.workers import Delivery, LearnerWorker, RolloutWorker
from mneme.learner import UpdateReport
from mneme.rollout_workers import Evaluation
from mneme.rollout_workers.state import State

_log = logging.getLogger(__name__)

WAITS = ("workers", "learner", "driver_for_workers", "driver_for_learner")
FRAGMENTS_LOST = "fragments were lost with their node before the learner could read them"
FragmentRef = Any  # a Ray ObjectRef, or the record batch itself


class ServiceError(RuntimeError):
    """The service cannot start or go on; the message is for the user."""


class ServiceLost(ServiceError):
    """Ray itself, or the learner, is gone; another try may go on."""


class FragmentsLost(ServiceError):
    """Fragments vanished with their node before the learner could read them; the learner itself is as it was."""


class PendingUpdate(NamedTuple):
    """An update that is under way, as references to what it will give."""

    report: Any
    weights: Any
    following: tuple[Any, ...]  # ready once the other replicas of the learner are done
    fragments: tuple[FragmentRef, ...]  # what it is made from
    deadline: float  # on the monotonic clock: then the learner counts as lost


class Arrival(NamedTuple):
    """A rollout worker's report, and where its fragment is (None if it could not make one, or none was due)."""

    delivery: Delivery
    fragment: FragmentRef | None


class Condition(NamedTuple):
    """How a run's parts fare."""

    workers: int  # that are there
    restarts: int  # of workers that were lost, since the process began
    learner_restarts: int
    unlearned: int  # steps of updates that took place, and were lost with the learner and their fragments
    waits: Mapping[str, float]  # seconds since the last one was asked for, by which of WAITS; NaN: not measured


class RunState(NamedTuple):
    """Everything that a resumed run needs."""

    learner: State
    workers: list[State | None]


class Runner(Protocol):
    """The operations that the service loops need of a run's parts."""

    level: int  # of the curriculum, at which fragments are collected

    @property
    def version(self) -> int:
        """Version of the newest weights."""

    def condition(self) -> Condition:
        """How its parts fare, and have waited since this was last asked."""

    def start(self) -> None:
        """Wait until every part is ready."""

    def collect(self) -> list[Arrival]:
        """One fragment from every worker under the newest weights, in the order of the workers. Waits for all; a worker
        that dies or hangs is replaced and its fragment goes missing."""

    def learn(self, fragments: Sequence[FragmentRef]) -> UpdateReport:
        """One update; its weights become the newest. Waits for it.

        Raises:
            FragmentsLost: the update did not take place.
        """

    def next_mode(self) -> None:
        """Enter the learner's next mode; see `LearnerSettings.mode_schedule`."""

    def evaluate(self, episodes: int, seed: int) -> Evaluation:
        """Greedy complete episodes under the newest weights, shared out over the workers.

        Raises:
            EvaluationError: it came to no result within its limits; training may go on.
        """

    def state(self) -> RunState:
        """See `RunState`."""

    def set_state(self, state: RunState) -> None:
        """Continue where `state()` was taken."""

    def close(self) -> None:
        """Let everything go."""


@runtime_checkable
class OverlappingRunner(Runner, Protocol):
    """A `Runner` that can collect and learn at the same time, for the asynchronous loop."""

    @property
    def idle(self) -> list[int]:
        """Workers that were asked for nothing."""

    @property
    def workers(self) -> int:
        """The number of workers that are there."""

    def request(self, worker: int) -> None:
        """Ask an idle worker for a fragment under the newest weights, at the present level."""

    def wait(self, update: PendingUpdate | None) -> list[Arrival]:
        """Wait until something has arrived, the update is done or a moment has passed, and return what has arrived.

        Raises:
            ServiceError: a worker failed more often in a row than `service.max_restarts`.
        """

    def learn_begin(self, fragments: Sequence[FragmentRef]) -> PendingUpdate:
        """Start an update, which goes to `learn_end`."""

    def learn_ready(self, update: PendingUpdate) -> bool:
        """True if `learn_end` would return at once."""

    def learn_end(self, update: PendingUpdate) -> UpdateReport:
        """Wait for an update; its weights become the newest. Raises as `learn` does."""


def episode_shares(episodes: int, workers: int) -> int:
    """Episodes for each worker, so that together they run at least `episodes`."""
    return -(-episodes // workers)


class LocalRunner:
    """A `Runner` that calls the workers in turn in this process; for debugging, tests and machines without Ray."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.level = 0
        self._evaluation_timeout = blueprint.config.train.evaluation_timeout
        self._learner = LearnerWorker(blueprint)
        self._workers = [RolloutWorker(blueprint, worker) for worker in range(blueprint.config.rollout.num_workers)]
        self._weights: Weights = self._learner.weights()

    @property
    def version(self) -> int:
        return self._weights.version

    def condition(self) -> Condition:
        return Condition(len(self._workers), 0, 0, 0, dict.fromkeys(WAITS, math.nan))  # nothing here is lost, or waits

    def start(self) -> None:
        pass

    def collect(self) -> list[Arrival]:
        arrivals = [Arrival(*worker.collect(self._weights, self.level)) for worker in self._workers]
        for arrival in arrivals:
            if arrival.delivery.error:
                _log.warning(
                    f"a fragment was not used: {arrival.delivery.error}", extra={"worker": arrival.delivery.worker}
                )
        return arrivals

    def learn(self, fragments: Sequence[FragmentRef]) -> UpdateReport:
        report, self._weights = self._learner.update(*fragments)
        return report

    def next_mode(self) -> None:
        self._learner.next_mode()

    def evaluate(self, episodes: int, seed: int) -> Evaluation:
        share = episode_shares(episodes, len(self._workers))
        deadline = monotonic() + self._evaluation_timeout
        return Evaluation.joined(
            [
                worker.evaluate(self._weights, share, seed, deadline - monotonic(), part)
                for part, worker in enumerate(self._workers)
            ]
        )

    def state(self) -> RunState:
        return RunState(self._learner.state(), [worker.state() for worker in self._workers])

    def set_state(self, state: RunState) -> None:
        self._weights = self._learner.set_state(state.learner)
        for worker, saved in zip(self._workers, state.workers, strict=True):
            if saved is None:
                worker.restart(incarnation=self.version)
            else:
                worker.set_state(saved)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
