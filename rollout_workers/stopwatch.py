"""A stopwatch that shares out wall-clock time among named parts of the work."""

from time import perf_counter
from typing import Self


class Stopwatch:
    """Wall-clock seconds by what they were spent on: `with watch("inference"): ...`.

    Inside one part another may run; its time is its own, not that of the part around it.

    Args:
        parts: what may be named.
    """

    def __init__(self, *parts: str) -> None:
        self.seconds = dict.fromkeys(parts, 0.0)
        self._running: list[str] = []
        self._next = ""
        self._since = 0.0

    def __call__(self, part: str) -> Self:
        """The context in which time belongs to this part; to be entered at once."""
        if part not in self.seconds:
            raise KeyError(part)
        self._next = part
        return self

    def __enter__(self) -> None:
        now = perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._running.append(self._next)
        self._since = now

    def __exit__(self, *_: object) -> None:
        now = perf_counter()
        self.seconds[self._running.pop()] += now - self._since
        self._since = now

    def add(self, seconds: dict[str, float], share: float = 1.0) -> None:
        """Count what another one measured, or a share of it; the part that runs meanwhile has the rest."""
        for part, spent in seconds.items():
            self.seconds[part] += share * spent
        if self._running:
            self.seconds[self._running[-1]] -= share * sum(seconds.values())
