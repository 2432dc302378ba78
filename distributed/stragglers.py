"""Rollout actors for which a synchronous update waits much longer than for the others: each is named, once."""

import logging
from collections.abc import Mapping
from statistics import median

_log = logging.getLogger(__name__)

RATIO = 3.0  # to the median of the others, above which an actor is slow
SECONDS = 5.0  # below which nobody minds


class Stragglers:
    """Looks at how long each actor took to deliver, round after round."""

    def __init__(self) -> None:
        self._named: set[int] = set()

    def look(self, took: Mapping[int, float]) -> None:
        """Warn of the slowest of a round, if it is slow and was not named before.

        Args:
            took: seconds from request to arrival, by worker.
        """
        if len(took) < 2:
            return
        slowest = max(took, key=lambda worker: took[worker])
        others = median(seconds for worker, seconds in took.items() if worker != slowest)
        if slowest in self._named or took[slowest] <= max(SECONDS, RATIO * others):
            return
        self._named.add(slowest)
        _log.warning(
            f"the update waits for rollout actor {slowest}: it delivered after {took[slowest]:.1f} s, the others after "
            f"{others:.1f} s (median); look at what else its node does, or let service.mode=async wait for nobody",
            extra={"worker": slowest},
        )
