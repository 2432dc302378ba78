"""The fall of a setting to zero, in a run whose end may be moved."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

Shape = Literal["linear", "cosine"]

_SHAPES: Mapping[Shape, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),  # Loshchilov and Hutter 2017, eq. 5, of 1 - left
}
"""The share of a setting where so much of the way is left, 1 to 0."""


class Annealing(NamedTuple):
    """The way of a setting to zero, as a share of the configured value."""

    start: float  # environment steps up to which it does not fall
    first: float  # share there
    end: float  # environment steps where the share is 0
    share: float  # of the last update

    def at(self, steps: float, shape: Shape = "linear") -> "Annealing":
        """The share of an update that begins at `steps`."""
        if steps < self.start:
            return self._replace(share=self.first)
        left = max(0.0, self.end - steps) / (self.end - self.start) if self.end > self.start else 0.0
        return self._replace(share=self.first * _SHAPES[shape](left))

    def until(self, end: float, steps: float) -> "Annealing":
        """With another end: from the last update's share to zero there, so that a longer run never learns faster."""
        return self if end == self.end else Annealing(max(self.start, steps), self.share, end, self.share)
