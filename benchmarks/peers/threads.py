"""The choice of the number of threads with which a peer runs fastest, made by trial during its warm-up."""

from collections.abc import Callable
from time import perf_counter

from benchmarks import measurement as m
from mneme.experiments.machine import cores


class ThreadChoice:
    """Tries one thread and as many as there are cores, one update each, and keeps the faster.

    Args:
        set_threads: called with the number of threads to go on with.
        most: threads to try instead.
    """

    def __init__(self, set_threads: Callable[[int], None], most: int | None = None) -> None:
        self._set_threads, self._most = set_threads, most or cores()
        self._seconds: dict[int, float] = {}
        self._updates = 0
        self._go_on(1)

    def update_done(self) -> None:
        """To be called at the end of every update."""
        self._updates += 1
        if self._updates <= m.WARM_UP:
            self._seconds[self.threads] = perf_counter() - self._started  # for one thread the warmer update counts
            self._go_on(self._next())

    def _next(self) -> int:
        if self._updates == m.WARM_UP:
            return min(self._seconds, key=self._seconds.__getitem__)
        return self._most if self._updates == m.WARM_UP - 1 else 1

    def _go_on(self, threads: int) -> None:
        self.threads = threads
        self._set_threads(threads)
        self._started = perf_counter()
