"""Actors that owe an answer: busy with it, or idle because the request or its answer was lost on the way?"""

from time import monotonic
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_APART = 15.0  # seconds between an answer and the next question


@ray.remote(num_cpus=0, max_retries=0)
def _ask(actor: Any) -> bool:
    answer: bool = ray.get(actor.ready.remote())
    return answer


class _Doubt(NamedTuple):
    question: Any
    answered: int = 0
    since: float = 0.0  # when the newest answer came


class Doubts:
    """Questions to actors, put by other processes than this one, whose own messages may be what is lost.

    An actor does one thing at a time, so that one that works answers only afterwards. One that has answered and, some
    seconds later, answers again has nothing to do: by then what it owed before the first answer would have come.
    """

    def __init__(self) -> None:
        self._doubts: dict[int, _Doubt] = {}

    def idle(self, worker: int, actor: Any) -> bool:
        """True once the actor has answered twice; never waits, so this is to be asked again and again."""
        doubt = self._doubts.get(worker) or self._put(worker, actor)
        now = monotonic()
        if doubt.question is None:
            if now - doubt.since > _APART:
                self._put(worker, actor, doubt.answered)
        elif ray.wait([doubt.question], timeout=0)[0]:
            answered = doubt.answered + self._answered(doubt.question)
            self._doubts[worker] = _Doubt(None, answered, now)
            return answered > 1
        return False

    def forget(self, worker: int) -> None:
        """Doubt this one no longer."""
        self._doubts.pop(worker, None)

    def _put(self, worker: int, actor: Any, answered: int = 0) -> _Doubt:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        doubt = self._doubts[worker] = _Doubt(_ask.options(scheduling_strategy=here).remote(actor), answered)
        return doubt

    @staticmethod
    def _answered(question: Any) -> bool:
        try:
            return bool(ray.get(question))
        except ray.exceptions.RayError:  # the actor is out of reach or gone, which its own request will tell
            return False
