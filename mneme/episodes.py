"""Training's episodes in the order in which they began.

Counted as they end, the first to be counted are the short ones: where failures are shorter than successes, a run's
first figures say that nearly everything fails. So an episode waits here until no older one of its worker is under way,
or the older one has kept it waiting for long.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mneme.distributed.workers import Delivery

PATIENCE = 1000
"""Steps of a lane after which an episode under way no longer keeps younger ones waiting."""


class Episodes(NamedTuple):
    """Episodes of one level of the curriculum, E of them."""

    level: int
    returns: np.ndarray  # [E] float64
    lengths: np.ndarray  # [E] int64
    successes: np.ndarray  # [E] bool; empty where nothing says what success is


class _Ended(NamedTuple):
    start: int  # the lane's step at which it began
    total: float  # undiscounted return
    length: int
    success: bool | None


class EpisodeOrder:
    """Lets a worker's episodes go in the order of their starts.

    A worker that starts anew (as it was lost, or enters another level) takes the waiting ones with it: those that
    kept them waiting will never be heard of, and without these they would not be a fair sample.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[int, list[_Ended]]] = {}  # worker -> its incarnation, and what waits

    def release(self, deliveries: Iterable[Delivery]) -> list[Episodes]:
        """Take what has ended; returns what need not wait, by delivery."""
        return [self._released(delivery) for delivery in deliveries if delivery.stats is not None]

    def _released(self, delivery: Delivery) -> Episodes:
        stats = delivery.stats
        assert stats is not None
        incarnation, waiting = self._waiting.get(delivery.worker, (delivery.incarnation, []))
        if incarnation != delivery.incarnation:
            waiting = []
        successes: Sequence[bool | None] = stats.successes.tolist() or [None] * len(stats.returns)
        ended = zip(stats.starts.tolist(), stats.returns.tolist(), stats.lengths.tolist(), successes, strict=True)
        waiting = sorted([*waiting, *(_Ended(*episode) for episode in ended)], key=lambda episode: episode.start)
        frontier = max(stats.oldest, stats.step - PATIENCE)
        free = [episode for episode in waiting if episode.start < frontier]
        self._waiting[delivery.worker] = delivery.incarnation, waiting[len(free) :]
        return Episodes(
            delivery.level,
            np.array([episode.total for episode in free], dtype=np.float64),
            np.array([episode.length for episode in free], dtype=np.int64),
            np.array([episode.success for episode in free if episode.success is not None], dtype=np.bool_),
        )

    def waits(self) -> bool:
        """True if an episode has ended that is not counted yet."""
        return any(waiting for _, waiting in self._waiting.values())

    def state(self) -> list[dict[str, Any]]:
        """The state that a resumed run needs, as JSON."""
        return [
            {"worker": worker, "incarnation": incarnation, "waiting": [list(episode) for episode in waiting]}
            for worker, (incarnation, waiting) in self._waiting.items()
        ]

    def set_state(self, state: Iterable[dict[str, Any]]) -> None:
        """Continue where `state()` was taken."""
        self._waiting = {
            entry["worker"]: (entry["incarnation"], [_Ended(*episode) for episode in entry["waiting"]])
            for entry in state
        }
