"""The replay: which fragments wait in the object store, under a bound of bytes and one of policy lag.

It holds references, never data, and knows nothing of Ray: a reference is whatever the runner uses for one.
"""

from collections import deque
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

Ref = TypeVar("Ref")


class ReplayCounts(NamedTuple):
    """Counts of the fragments that the replay has received and dropped since the run began."""

    added: int  # fragments that arrived
    dropped_stale: int  # thrown away because they fell behind the lag bound
    dropped_full: int  # thrown away because newer ones needed their bytes


@dataclass(eq=False)
class _Entry(Generic[Ref]):
    ref: Ref
    nbytes: int
    version: int


class Replay(Generic[Ref]):
    """Fragments in order of arrival, oldest first out.

    Bounds, reached but never exceeded: the fragments held sum to at most `max_bytes` (one that is larger by itself is
    not taken), and a fragment handed out was delivered under weights at most `max_lag` versions behind the learner's,
    though whole episodes in it may have been under way for longer.

    Args:
        max_bytes: bytes of fragments kept.
        max_lag: weights versions that a fragment may be behind when it is sampled.
    """

    def __init__(self, max_bytes: int, max_lag: int) -> None:
        self.max_bytes, self.max_lag = max_bytes, max_lag
        self.nbytes = 0
        self._entries: deque[_Entry[Ref]] = deque()
        self._added = self._stale = self._full = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def counts(self) -> ReplayCounts:
        """Arrivals and losses so far."""
        return ReplayCounts(self._added, self._stale, self._full)

    def add(self, ref: Ref, nbytes: int, version: int) -> None:
        """Take a fragment of `nbytes` delivered under weights `version`, dropping the oldest to make room."""
        self._added += 1
        if nbytes > self.max_bytes:
            self._full += 1
            return
        while self.nbytes + nbytes > self.max_bytes:
            self._remove(self._entries[0])
            self._full += 1
        self._entries.append(_Entry(ref, nbytes, version))
        self.nbytes += nbytes

    def sample(self, count: int, version: int) -> list[Ref]:
        """Take out the `count` oldest fragments within the lag bound of `version`; [] if there are fewer."""
        for entry in [entry for entry in self._entries if version - entry.version > self.max_lag]:
            self._remove(entry)
            self._stale += 1
        if len(self._entries) < count:
            return []
        chosen = [self._entries[i] for i in range(count)]
        for entry in chosen:
            self._remove(entry)
        return [entry.ref for entry in chosen]

    def _remove(self, entry: _Entry[Ref]) -> None:
        self._entries.remove(entry)
        self.nbytes -= entry.nbytes
