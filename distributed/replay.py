"""The replay: which fragments wait in the object store, under a bound of bytes and one of policy lag.

It holds references, never data, and knows nothing of Ray: a reference is whatever the runner uses for one.
"""

import sys
from collections import Counter, deque
from typing import Generic, NamedTuple, TypeVar

Ref = TypeVar("Ref")


class Held(NamedTuple, Generic[Ref]):
    """A fragment that waits, and what is known of it."""

    ref: Ref
    nbytes: int
    steps: int
    version: int  # of the weights under which it was delivered


class ReplayCounts(NamedTuple):
    """What the replay has received, dropped and handed out since it was made, in fragments or in steps."""

    added: int
    dropped_stale: int  # thrown away because they fell behind the lag bound
    dropped_full: int  # thrown away because newer ones needed their bytes
    sampled: int
    waiting: int


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
        self.largest = 0  # bytes of the largest fragment so far
        self._entries: deque[Held[Ref]] = deque()
        self._fragments: Counter[str] = Counter()
        self._steps: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def fragments(self) -> ReplayCounts:
        """Arrivals and departures so far, in fragments."""
        return _counts(self._fragments, len(self))

    @property
    def steps(self) -> ReplayCounts:
        """The same in environment steps."""
        return _counts(self._steps, sum(entry.steps for entry in self._entries))

    @property
    def room(self) -> int:
        """Fragments as large as the largest so far for which there is room."""
        return (self.max_bytes - self.nbytes) // self.largest if self.largest else sys.maxsize

    def add(self, ref: Ref, nbytes: int, steps: int, version: int) -> None:
        """Take a fragment of `nbytes` delivered under weights `version`, dropping the oldest to make room."""
        entry = Held(ref, nbytes, steps, version)
        self._count("added", entry)
        self.largest = max(self.largest, nbytes)
        if nbytes > self.max_bytes:
            self._count("dropped_full", entry)
            return
        while self.nbytes + nbytes > self.max_bytes:
            self._take_out("dropped_full", self._entries.popleft())
        self._entries.append(entry)
        self.nbytes += nbytes

    def sample(self, count: int, version: int) -> list[Held[Ref]]:
        """Take out the `count` oldest fragments within the lag bound of `version`; [] if there are fewer."""
        fresh = deque[Held[Ref]]()
        for entry in self._entries:
            if version - entry.version > self.max_lag:
                self._take_out("dropped_stale", entry)
            else:
                fresh.append(entry)
        self._entries = fresh
        if len(fresh) < count:
            return []
        return [self._take_out("sampled", fresh.popleft()) for _ in range(count)]

    def _take_out(self, why: str, entry: Held[Ref]) -> Held[Ref]:
        self.nbytes -= entry.nbytes
        self._count(why, entry)
        return entry

    def _count(self, what: str, entry: Held[Ref]) -> None:
        self._fragments[what] += 1
        self._steps[what] += entry.steps


def _counts(counter: Counter[str], waiting: int) -> ReplayCounts:
    return ReplayCounts(
        counter["added"], counter["dropped_stale"], counter["dropped_full"], counter["sampled"], waiting
    )
