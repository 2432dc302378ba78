"""Where a run's parts live: all in this process, or as Ray actors. The service loops see only the `Runner`."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

from mneme.controllers import Weights
from mneme.distributed.blueprint import Blueprint
from mneme.distributed.workers import Delivery, LearnerWorker, RolloutWorker, State
from mneme.learner import UpdateReport
from mneme.rollout_workers import Evaluation

FragmentRef = Any  # a Ray ObjectRef, or the record batch itself


class ServiceError(RuntimeError):
    """The service cannot start or go on; the message is for the user."""


class FragmentsLost(ServiceError):
    """Fragments vanished with their node before the learner could read them; the learner itself is as it was."""


class Arrival(NamedTuple):
    """A rollout worker's report, and where its fragment is (None if it could not make one)."""

    delivery: Delivery
    fragment: FragmentRef | None


class RunState(NamedTuple):
    """Everything that a resumed run needs."""

    learner: State
    workers: list[State | None]


class Runner(Protocol):
    """What the service loops ask for."""

    level: int  # of the curriculum, at which fragments are collected

    @property
    def version(self) -> int:
        """Version of the newest weights."""

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


def episode_shares(episodes: int, workers: int) -> int:
    """Episodes for each worker, so that together they run at least `episodes`."""
    return -(-episodes // workers)


class LocalRunner:
    """The same workers, called in turn in this process, without Ray; for debugging, tests and machines without Ray."""

    def __init__(self, blueprint: Blueprint, note: Callable[[str], None]) -> None:
        self.level = 0
        self._note = note
        self._evaluation_timeout = blueprint.config.train.evaluation_timeout
        self._learner = LearnerWorker(blueprint)
        self._workers = [RolloutWorker(blueprint, worker) for worker in range(blueprint.config.rollout.workers)]
        self._weights: Weights = self._learner.weights()

    @property
    def version(self) -> int:
        return self._weights.version

    def start(self) -> None:
        pass

    def collect(self) -> list[Arrival]:
        arrivals = [Arrival(*worker.collect(self._weights, self.level)) for worker in self._workers]
        for arrival in arrivals:
            if arrival.delivery.error:
                self._note(f"a fragment was not used: {arrival.delivery.error}")
        return arrivals

    def learn(self, fragments: Sequence[FragmentRef]) -> UpdateReport:
        report, self._weights = self._learner.update(*fragments)
        return report

    def evaluate(self, episodes: int, seed: int) -> Evaluation:
        share = episode_shares(episodes, len(self._workers))
        deadline = monotonic() + self._evaluation_timeout
        return Evaluation.joined(
            [worker.evaluate(self._weights, share, seed, deadline - monotonic()) for worker in self._workers]
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
