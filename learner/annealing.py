"""The linear annealing of the learning rate, in a run whose end may be moved."""

from typing import NamedTuple


class Annealing(NamedTuple):
    """The learning rate's linear way to zero, as a share of the configured one."""

    start: float  # environment steps
    first: float  # share there
    end: float  # environment steps where the share is 0
    share: float  # of the last update

    def at(self, steps: float) -> "Annealing":
        """The share of an update that begins at `steps`."""
        left = max(0.0, self.end - steps) / (self.end - self.start) if self.end > self.start else 0.0
        return self._replace(share=self.first * left)

    def until(self, end: float, steps: float) -> "Annealing":
        """With another end: from the last update's share to zero there, so that a longer run never learns faster."""
        return self if end == self.end else Annealing(steps, self.share, end, self.share)
