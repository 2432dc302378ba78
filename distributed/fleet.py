"""The rollout actors: asked for fragments, waited for, replaced when they die or hang.

A request returns two objects that this process owns: a small delivery, fetched here, and the fragment, which stays in
the object store until the learner maps it. A dead actor therefore loses only what it had in flight.
"""

import logging
from time import monotonic
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from mneme.distributed.blueprint import Blueprint
from mneme.distributed.runners import Arrival, ServiceError, episode_shares
from mneme.distributed.workers import RolloutWorker, State
from mneme.envs import EnvironmentMisuse
from mneme.rollout_workers import Evaluation, EvaluationError

_log = logging.getLogger(__name__)

_REASON_CHARACTERS = 300


class _Request(NamedTuple):
    worker: int
    fragment: ray.ObjectRef  # type: ignore[type-arg]
    started: float


class RolloutFleet:
    """One actor for each worker number, with at most one request in flight each.

    Args:
        blueprint: what the workers are built from.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        service = blueprint.config.service
        self._actor_class: Any = ray.remote(num_cpus=service.worker_cpus)(RolloutWorker)
        self._blueprint = ray.put(blueprint)
        self._timeout, self._max_restarts = service.collect_timeout, service.max_restarts
        self._evaluation_timeout = blueprint.config.train.evaluation_timeout
        self._incarnations = [0] * blueprint.config.rollout.num_workers
        self._failures = [0] * blueprint.config.rollout.num_workers
        self._actors = [self._spawn(worker) for worker in range(blueprint.config.rollout.num_workers)]
        self._requests: dict[ray.ObjectRef, _Request] = {}  # type: ignore[type-arg]
        self.restarts = 0

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def idle(self) -> list[int]:
        """Workers without a request in flight."""
        busy = {request.worker for request in self._requests.values()}
        return [worker for worker in range(len(self)) if worker not in busy]

    def request(self, worker: int, weights: Any, level: int) -> None:
        """Ask one worker for a fragment under the weights that the reference names, at a level of the curriculum."""
        delivery, fragment = self._actors[worker].collect.options(num_returns=2).remote(weights, level)
        self._requests[delivery] = _Request(worker, fragment, monotonic())

    def wait(self, *others: Any, timeout: float = 1.0) -> list[Arrival]:
        """Arrivals, as soon as there is one, or one of `others` is ready, or `timeout` seconds have passed.

        Raises:
            ServiceError: a worker failed more often in a row than `service.max_restarts`.
            EnvironmentMisuse: another actor would fail in the same way.
        """
        if not self._requests and not others:
            return []
        ray.wait([*self._requests, *others], num_returns=1, timeout=timeout, fetch_local=False)
        arrivals = [arrival for ref in self._ready() if (arrival := self._take(ref)) is not None]
        self._replace_hung()
        return arrivals

    def _ready(self) -> list[Any]:
        if not self._requests:
            return []
        return ray.wait(list(self._requests), num_returns=len(self._requests), timeout=0, fetch_local=False)[0]

    def _take(self, ref: Any) -> Arrival | None:
        request = self._requests.pop(ref)
        try:
            delivery = ray.get(ref)
        except RayError as error:
            if isinstance(error, RayTaskError) and isinstance(error.cause, EnvironmentMisuse):
                raise error.cause from None
            self._replace(request.worker, failure_reason(error))
            return None
        self._incarnations[request.worker] = delivery.incarnation
        if delivery.error is None:
            self._failures[request.worker] = 0
            return Arrival(delivery, request.fragment if delivery.nbytes else None)
        self._count_failure(request.worker, delivery.error)
        _log.warning(f"a fragment was not used: {delivery.error}")
        return Arrival(delivery, None)

    def _replace_hung(self) -> None:
        for request in list(self._requests.values()):
            if monotonic() - request.started > self._timeout:
                self._replace(request.worker, f"it did not deliver within {self._timeout:g} seconds")

    def _replace(self, worker: int, reason: str) -> None:
        self._count_failure(worker, reason)
        _log.warning(f"rollout actor {worker} was lost ({reason}); a new one takes its place")
        ray.kill(self._actors[worker])
        self._requests = {ref: request for ref, request in self._requests.items() if request.worker != worker}
        self._incarnations[worker] += 1
        self.restarts += 1
        self._actors[worker] = self._spawn(worker)

    def _count_failure(self, worker: int, reason: str) -> None:
        self._failures[worker] += 1
        if self._failures[worker] > self._max_restarts:
            raise ServiceError(f"rollout actor {worker} failed {self._failures[worker]} times in a row: {reason}")

    def _spawn(self, worker: int) -> Any:
        return self._actor_class.remote(self._blueprint, worker, self._incarnations[worker])

    def evaluate(self, weights: Any, episodes: int, seed: int) -> Evaluation:
        """Greedy complete episodes, shared out over the actors; one that is lost is replaced and asked once more.

        Raises:
            EvaluationError: no result, for a reason that asking again would not change.
        """
        share = episode_shares(episodes, len(self))
        parts: list[Evaluation | EvaluationError] = []
        refs = [actor.evaluate.remote(weights, share, seed, self._evaluation_timeout) for actor in self._actors]
        deadline = monotonic() + self._evaluation_timeout + self._timeout
        for worker, ref in enumerate(refs):
            part = self._evaluated(worker, ref, deadline)
            if part is None:
                again = self._actors[worker].evaluate.remote(weights, share, seed, self._evaluation_timeout)
                part = self._evaluated(worker, again, monotonic() + self._evaluation_timeout + self._timeout)
            parts.append(part or EvaluationError(f"rollout actor {worker} was lost twice"))
        for part in parts:  # only now, so that no actor is still busy with it
            if isinstance(part, EvaluationError):
                raise part
        return Evaluation.joined([part for part in parts if isinstance(part, Evaluation)])

    def _evaluated(self, worker: int, ref: Any, deadline: float) -> "Evaluation | EvaluationError | None":
        """An actor's share of an evaluation, why there is none, or None if the actor was lost and has been replaced."""
        try:
            evaluation: Evaluation = ray.get(ref, timeout=max(0.0, deadline - monotonic()))
        except RayTaskError as error:
            return EvaluationError(str(error.cause))
        except GetTimeoutError as error:
            self._replace(worker, failure_reason(error))
            return EvaluationError(f"rollout actor {worker} did not answer within {self._evaluation_timeout:g} seconds")
        except RayError as error:
            self._replace(worker, failure_reason(error))
            return None
        return evaluation

    def states(self) -> list[State | None]:
        """The workers' states, after what they have in flight."""
        refs = [actor.state.remote() for actor in self._actors]
        states: list[State | None] = []
        for worker, ref in enumerate(refs):
            try:
                states.append(ray.get(ref, timeout=self._timeout))
            except RayError as error:
                self._replace(worker, failure_reason(error))
                states.append(None)
        return states

    def set_states(self, states: list[State | None], version: int) -> None:
        """Give every worker the state it had; one without a state starts new episodes, numbered by the weights'
        version so that they repeat none of the past."""
        self._incarnations = [version if state is None else int(state["incarnation"]) for state in states]
        calls = [
            actor.restart.remote(incarnation) if state is None else actor.set_state.remote(state)
            for actor, state, incarnation in zip(self._actors, states, self._incarnations, strict=True)
        ]
        try:
            ray.get(calls)
        except RayError as error:
            raise ServiceError(f"a rollout actor could not take up its state: {failure_reason(error)}") from None

    def started(self) -> list[Any]:
        """References that become ready as the actors do."""
        return [actor.ready.remote() for actor in self._actors]


def failure_reason(error: RayError) -> str:
    """The heart of a Ray error in one line, without its remote traceback."""
    if isinstance(error, RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    if isinstance(error, GetTimeoutError):
        return "it did not answer in time"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[-1] if "error" in lines[-1].lower() else lines[0]
    return line.partition(". ")[0][:_REASON_CHARACTERS]
