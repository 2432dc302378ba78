"""The learner as the service sees it: begun anew from its last state where it is lost, with the run going on.

What has been asked of it since that state is asked again, in the same order and with the same fragments, so that it
comes to the bits that it would have come to.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayError

from mneme.distributed.blueprint import Blueprint
from mneme.distributed.failures import GO_ON, check_daemons, daemons_of_own_ray
from mneme.distributed.learners import LearnerLost, Learners
from mneme.distributed.runners import FRAGMENTS_LOST, FragmentRef, FragmentsLost, PendingUpdate, ServiceLost
from mneme.distributed.waiting import Waits
from mneme.learner import UpdateReport
from mneme.rollout_workers.state import State

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Asked:
    """Something that was asked of the learner, and will be asked again of the one that takes its place."""

    fragments: tuple[FragmentRef, ...] | None  # of an update; None: to enter the next mode
    steps: int | None = None  # that the update has trained on, once that was reported


class LastingLearner:
    """One learner to the rest of the run, through the lives of its actors.

    Its last state and its newest weights lie in this process, as its node may die with it, and
    `service.learner_snapshot_every` says how often the state is taken. The fragments of the updates since then, two
    more than that at most, are kept in the object store.

    Args:
        blueprint: what it is built from.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        service = blueprint.config.service
        self._blueprint, self._limit = blueprint, service.wait_for_resources
        self._every, self._most_in_a_row = service.learner_snapshot_every, service.max_restarts
        self._daemons = daemons_of_own_ray()
        self._learners = Learners(blueprint)
        self.weights: Any = self._learners.weights  # a reference to the newest
        self.version = 0  # of these
        self._held: Any = None  # the weights themselves: while they are held, another node can have them from this one
        self.restarts = 0
        self.waits = Waits("learner", "driver_for_learner")
        self._idle_since = math.inf  # when its last update ended
        self._in_a_row = 0
        self.unlearned = 0  # steps of updates that were reported, and lost with the learner and their fragments
        # since the last loss, by the fragments of the update; None: these are lost
        self._redone: dict[tuple[FragmentRef, ...], UpdateReport | None] = {}
        self._known: State = {}  # what a learner goes on from; empty before the first
        self._coming: tuple[Any, int] | None = None  # a reference to a later state, and how much of `_since` is in it
        self._since: list[_Asked] = []  # what has been asked since `_known`
        self._learning = _Asked(())  # the newest update

    @property
    def actors(self) -> list[Any]:
        """The actors of its present life, by rank."""
        return self._learners.actors

    @property
    def demand(self) -> Mapping[str, float]:
        """Resources that it asks for."""
        return self._learners.demand

    def wait(self) -> None:
        """Wait until it is there.

        Raises:
            ServiceError: it is not, after `service.wait_for_resources`, or was lost more often in a row than
                `service.max_restarts`.
        """
        try:
            self._begin()
        except LearnerLost as error:
            self._begin_anew(error)

    def _begin(self) -> None:
        """Wait for a learner that has just been made, and let it take up the last state, if there is one."""
        self._learners.wait(self._limit)
        if self._known:
            self._take_up(self._known)
        else:
            self._hold(self._learners.weights)
            self._known = self._learners.fetched(self._learners.state())

    def begin(self, fragments: Sequence[FragmentRef]) -> PendingUpdate:
        """Start an update."""
        self._take_snapshot()
        self.waits.add("learner", max(0.0, monotonic() - self._idle_since))
        self._redone, self._learning = {}, _Asked(tuple(fragments))
        self._since.append(self._learning)
        return self._learners.begin(fragments)

    def pending(self, update: PendingUpdate) -> list[Any]:
        """See `Learners.pending`."""
        return self._learners.pending(update)

    def ready(self, update: PendingUpdate) -> bool:
        """True if `end` would return, or begin anew, at once."""
        return self._learners.ready(update)

    def end(self, update: PendingUpdate) -> UpdateReport:
        """Wait for an update; its weights become the newest.

        Raises:
            FragmentsLost: it did not take place.
            ValueError, FloatingPointError: what the learner said.
            ServiceLost: it was lost more often in a row than `service.max_restarts`.
        """
        try:
            with self.waits("driver_for_learner"):
                report = self._ended(update)
        except FragmentsLost as error:
            self._since.remove(self._learning)
            _say_lost(error)
            raise
        except LearnerLost as error:
            if update.fragments not in self._redone:
                self._begin_anew(error)
            redone = self._redone.get(update.fragments)
            if redone is None:
                raise FragmentsLost(FRAGMENTS_LOST) from None
            report = redone
        self._learning.steps, self._in_a_row = report.steps, 0
        if self._coming is None and len(self._since) >= self._every:
            self._coming = self._learners.state(), len(self._since)
        return report

    def _ended(self, update: PendingUpdate) -> UpdateReport:
        report = self._learners.end(update)
        self._hold(update.weights)
        self._idle_since = monotonic()
        return report

    def _take_snapshot(self) -> None:
        """Take up the state that was asked for, if it has come."""
        if self._coming is None:
            return
        ref, included = self._coming
        if ray.wait([ref], timeout=0)[0]:
            self._coming = None
            try:
                self._known = ray.get(ref)
            except RayError:  # it was lost at that moment, as the next update will find
                return
            del self._since[:included]

    def _begin_anew(self, error: LearnerLost) -> None:
        """Do again what was asked since the last known state."""
        while True:
            check_daemons(self._daemons)
            self._in_a_row += 1
            if self._in_a_row > self._most_in_a_row:
                raise ServiceLost(f"the learner was lost {self._in_a_row} times in a row: {error}; {GO_ON}")
            _log.warning(f"{error}; it begins anew from its last state")
            self.restarts += 1
            self._coming = None
            self._learners.close()
            self._learners = Learners(self._blueprint)
            try:
                self._begin()
                self._since = [asked for asked in self._since if self._do_again(asked)]
            except LearnerLost as again:
                error = again
            else:
                return

    def _do_again(self, asked: _Asked) -> bool:
        """False if it was an update that was never reported, and whose fragments are lost, too."""
        if asked.fragments is None:
            self._learners.next_mode()
            return True
        report = None
        try:
            report = self._ended(self._learners.begin(asked.fragments))
        except FragmentsLost as error:
            _say_lost(error)
            if asked.steps is not None:  # rollout actors have acted under its weights
                self._hold(self._learners.skip())
        self._redone[asked.fragments] = report
        if asked.steps is None:
            return report is not None
        again = report.steps if report else 0
        self.unlearned += asked.steps - again
        asked.steps = again
        return True

    def next_mode(self) -> None:
        """Let it enter the next mode, before whatever is asked of it next."""
        self._since.append(_Asked(None))
        self._learners.next_mode()

    def state(self) -> State:
        """See `Learner.state`."""
        while True:
            try:
                self._known = self._learners.fetched(self._learners.state())
            except LearnerLost as error:
                self._begin_anew(error)
            else:
                self._since, self._coming, self._in_a_row = [], None, 0
                return self._known

    def set_state(self, state: State) -> None:
        """Go on from a state."""
        self._known, self._since, self._coming = state, [], None
        try:
            self._take_up(state)
        except LearnerLost as error:
            self._begin_anew(error)

    def _take_up(self, state: State) -> None:
        self._hold(self._learners.set_state(state))

    def _hold(self, weights: Any) -> None:
        self._held = self._learners.fetched(weights)
        self.weights, self.version = weights, int(self._held.version)

    def close(self) -> None:
        """Let it go, with what was reserved for it."""
        self._learners.close()


def _say_lost(error: FragmentsLost) -> None:
    _log.warning(f"{error}; training goes on")
